//! Hands inside guests that have the agent's protocol.

use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::StreamExt as _;
use hvkube_host::guest::{ExecEvent, ExecParams, OpenOptions, ReadParams, Session, WriteParams, connect};
use hvkube_host::hypervisor::Hypervisor;
use hvkube_host::model::ids::VmId;

use crate::rig::soon;

const FILE: &str = "word";

/// A session with a VM's agent, newer than all before.
pub(crate) async fn open(hv: &dyn Hypervisor, vm: &VmId) -> Session {
    static EPOCH: AtomicU64 = AtomicU64::new(1);
    let options = OpenOptions { epoch: EPOCH.fetch_add(1, Ordering::Relaxed), ..OpenOptions::default() };
    connect(hv, vm, &options, soon()).await.expect("a session")
}

pub(crate) async fn write(hv: &dyn Hypervisor, vm: &VmId, word: &str) {
    let params = WriteParams { path: FILE.into(), ..WriteParams::default() };
    let data = futures_util::stream::iter([Ok::<_, String>(word.as_bytes().to_vec().into())]);
    open(hv, vm).await.write_file(params, data, soon()).await.expect("written");
}

pub(crate) async fn read(hv: &dyn Hypervisor, vm: &VmId) -> String {
    let params = ReadParams { path: FILE.into(), ..ReadParams::default() };
    let session = open(hv, vm).await;
    let mut file = session.read_file(params, soon()).await.expect("a file");
    let mut word = Vec::new();
    while let Some(piece) = file.data.next().await {
        word.extend(piece.expect("readable"));
    }
    String::from_utf8(word).expect("text")
}

/// What a program prints.
pub(crate) async fn exec(session: &Session, argv: &[&str]) -> String {
    let argv = argv.iter().map(|word| (*word).to_owned()).collect();
    let params = ExecParams { argv, ..ExecParams::default() };
    let mut events = session.exec(params, soon()).await.expect("it starts");
    let mut printed = Vec::new();
    while let Some(event) = events.next().await {
        match event.expect("it goes on") {
            ExecEvent::Stdout(piece) => printed.extend(piece),
            ExecEvent::Exited { code, .. } => assert_eq!(code, 0),
            ExecEvent::Started { .. } | ExecEvent::Stderr(_) => {}
        }
    }
    String::from_utf8(printed).expect("text")
}
