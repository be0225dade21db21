//! Templates, and what a backend says of itself.

use hvkube_host::hypervisor::HvError;
use hvkube_host::model::template::CloneMethod;

use crate::rig::{Rig, at_rest, clone_of, golden, template_id, vm_id};

pub(crate) async fn capabilities_agree_with_each_other<R: Rig>() {
    let rig = R::new().await;
    let (can, facts) = (rig.hv().capabilities().clone(), rig.hv().facts().clone());
    assert!(!facts.name.is_empty() && !facts.version.is_empty() && !facts.accelerator_reason.is_empty());
    assert_eq!(can.clone_method == CloneMethod::Boot, !can.save, "without saved memory clones boot");
    assert!(!can.memory_checkpoints || can.save, "a checkpoint is a saved memory");
    assert!(!can.fork || can.save, "a fork is a saved memory");
    assert!(can.networks.contains(&rig.spec().network.mode()));
    assert_eq!((&can, &facts), (rig.hv().capabilities(), rig.hv().facts()), "they do not change");
    assert!(rig.hv().events().is_some() && rig.hv().events().is_none(), "given once");
}

pub(crate) async fn templates_are_imported_once<R: Rig>() {
    let rig = R::new().await;
    let (hv, id) = (rig.hv(), template_id("desk"));
    let facts = hv.import_template(&id, &rig.spec()).await.expect("import");
    assert!(!facts.format.is_empty(), "{facts:?}");
    assert!(facts.sha256.len() == 64 && facts.sha256.bytes().all(|b| b.is_ascii_hexdigit()), "{facts:?}");
    let twice = hv.import_template(&id, &rig.spec()).await.expect_err("there is one");
    assert!(matches!(twice, HvError::AlreadyExists { kind: "template", .. }), "{twice}");
    hv.import_template(&template_id("another"), &rig.spec()).await.expect("import");
    assert_eq!(hv.templates().await.expect("list"), [template_id("another"), id.clone()]);
    hv.delete_template(&id).await.expect("delete");
    hv.delete_template(&id).await.expect("deleted already");
    assert_eq!(hv.templates().await.expect("list"), [template_id("another")]);
    let again = hv.import_template(&id, &rig.spec()).await.expect("the name is free");
    assert_eq!(again.sha256, facts.sha256, "the same disk");
}

pub(crate) async fn templates_that_can_not_be_are_refused_by_field<R: Rig>() {
    let rig = R::new().await;
    for (spec, expected) in rig.refused() {
        match rig.hv().import_template(&template_id("desk"), &spec).await {
            Err(HvError::BadSetting { field, .. } | HvError::FileNotFound { field, .. }) => {
                assert_eq!(field, expected);
            }
            other => panic!("{expected}: {other:?}"),
        }
        assert_eq!(rig.hv().templates().await.expect("list"), [], "nothing half-made after {expected}");
    }
}

pub(crate) async fn templates_are_sealed_from_their_own_vm<R: Rig>() {
    let rig = R::new().await;
    let (hv, id) = (rig.hv(), template_id("desk"));
    hv.import_template(&id, &rig.spec()).await.expect("import");
    let method = hv.capabilities().clone_method;
    if method != CloneMethod::Boot {
        let early = hv.define(&clone_of("early", &id)).await.expect_err("not sealed yet");
        assert!(matches!(early, HvError::NotFound { .. }), "{early}");
    }
    let off = golden("off", &id);
    hv.define(&off).await.expect("define");
    hv.seal_template(&id, &off.id).await.expect_err("it does not run");
    hv.observe(&off.id).await.expect_err("consumed also when it fails");
    let builder = golden("builder", &id);
    hv.define(&builder).await.expect("define");
    hv.start(&builder.id).await.expect("boot");
    assert_eq!(hv.seal_template(&id, &builder.id).await.expect("seal"), method);
    let gone = hv.observe(&builder.id).await.expect_err("consumed");
    assert!(matches!(gone, HvError::NotFound { kind: "vm", .. }), "{gone}");
    assert_eq!(hv.define(&clone_of("vm-1", &id)).await.expect("define"), at_rest(&rig));
    let unknown = hv.seal_template(&id, &vm_id("nobody")).await.expect_err("no such vm");
    assert!(matches!(unknown, HvError::NotFound { kind: "vm", .. }), "{unknown}");
    hv.delete(&vm_id("vm-1")).await.expect("delete");
    hv.delete_template(&id).await.expect("delete template");
    assert_eq!(hv.templates().await.expect("list"), []);
}
