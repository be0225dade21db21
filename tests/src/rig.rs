//! A daemon with a prepared template, and what most scenarios do with it.

use std::ops::{Deref, DerefMut};
use std::time::Instant;

use hvkube_sdk::v1::{Pool, Template, Vm};
use hvkube_sdk::{Client, Desktop, Result};
use rustix::process::{Signal, kill_process};
use tokio_stream::StreamExt as _;

use crate::daemon::pid;
use crate::{Daemon, GoldenImage, LONG, until};

/// Id of the template.
const TEMPLATE: &str = "linux";

/// A daemon with a template of the golden image that is ready.
#[derive(Debug)]
pub struct Rig {
    daemon: Daemon,
    /// What the template was made of.
    pub image: GoldenImage,
}

impl Deref for Rig {
    type Target = Daemon;

    fn deref(&self) -> &Daemon {
        &self.daemon
    }
}

impl DerefMut for Rig {
    fn deref_mut(&mut self) -> &mut Daemon {
        &mut self.daemon
    }
}

impl Rig {
    /// On QEMU, with the golden image.
    ///
    /// # Panics
    /// When the template can't be made.
    pub async fn start() -> Self {
        let began = Instant::now();
        let rig = Self { image: GoldenImage::find(), daemon: Daemon::start(&[]).await };
        rig.template(rig.image.template()).await;
        eprintln!("template ready after {:.1} s", began.elapsed().as_secs_f64());
        rig
    }

    /// Names a scenario in the output and takes its time.
    pub async fn scenario(&mut self, name: &str, run: impl AsyncFnOnce(&mut Self)) {
        timed(name, run(self)).await;
    }

    /// Kills the process of a VM.
    ///
    /// # Panics
    /// When it has none.
    pub fn kill_machine(&self, vm: &Vm) {
        kill_process(pid(vm.process_id), Signal::KILL).expect("it runs");
    }

    /// What must hold when nothing is under way: a process for each VM that runs, and none besides.
    ///
    /// # Panics
    /// When it does not.
    pub async fn check(&self) {
        use hvkube_sdk::v1::VmState;
        until("processes and vms agree", async || {
            let mut running: Vec<_> = self
                .vms(None)
                .await
                .into_iter()
                .filter(|vm| matches!(vm.state(), VmState::Running | VmState::Paused))
                .map(|vm| (vm.process_id, vm.name.trim_start_matches("vms/").to_owned()))
                .collect();
            running.sort();
            (running == self.machines()).then_some(())
        })
        .await;
    }
}

impl Daemon {
    /// Makes the template that pools are made of.
    ///
    /// # Panics
    /// When it can't be made.
    pub async fn template(&self, template: Template) {
        let made = make_template(&self.client(), TEMPLATE, template).await.expect("a template");
        assert_eq!(made.name, format!("templates/{TEMPLATE}"));
    }

    /// Makes a pool of the template and waits until its VMs are ready.
    ///
    /// # Panics
    /// When they don't become so.
    pub async fn pool(&self, id: &str, count: u32) {
        let pool =
            Pool { template: format!("templates/{TEMPLATE}"), desired_count: count, ..Pool::default() };
        self.client().create_pool(id, pool).await.expect("a pool");
        self.ready(id, count).await;
    }

    /// Waits until so many VMs of a pool are ready.
    pub async fn ready(&self, pool: &str, count: u32) -> Pool {
        let client = self.client();
        until(&format!("{count} ready vms in {pool}"), async || {
            let pool = client.get_pool(pool).await.expect("a pool");
            (pool.status.as_ref().map(|status| status.warm) == Some(count)).then_some(pool)
        })
        .await
    }

    /// Deletes a pool with all leases and waits until its VMs are gone.
    pub async fn drop_pool(&self, id: &str) {
        let client = self.client();
        client.delete_pool(id, true).await.expect("deleted");
        until("the end of a pool's vms", async || self.vms(Some(id)).await.is_empty().then_some(())).await;
    }

    /// Leases a desktop.
    ///
    /// # Panics
    /// When there is none.
    pub async fn acquire(&self, pool: &str) -> Desktop {
        self.client().acquire(pool).wait(LONG).await.expect("a desktop")
    }

    /// All VMs, or those of a pool.
    ///
    /// # Panics
    /// When they can't be listed.
    pub async fn vms(&self, pool: Option<&str>) -> Vec<Vm> {
        let all: Result<Vec<_>> = self.client().list_vms(pool, &[]).collect().await;
        all.expect("vms")
    }

    /// A VM as it is now.
    ///
    /// # Panics
    /// When there is none.
    pub async fn vm(&self, name: &str) -> Vm {
        self.client().get_vm(name).await.expect("a vm")
    }
}

/// Names a scenario in the output and takes its time.
pub async fn timed(name: &str, scenario: impl Future<Output = ()>) {
    eprintln!("scenario {name}");
    let began = Instant::now();
    scenario.await;
    eprintln!("scenario {name}: {:.1} s", began.elapsed().as_secs_f64());
}

/// Makes a template and waits for it.
///
/// # Errors
/// As the call or its operation.
pub async fn make_template(client: &Client, id: &str, template: Template) -> Result<Template> {
    let operation = client.create_template(id, template).await?;
    client.wait_operation(operation, |_| {}).await
}
