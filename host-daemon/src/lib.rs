//! Host daemon of hyperv-kube: pools of clean desktop VMs, handed out as leases, seen and driven over gRPC.
//!
//! Arrows between the modules go one way: `api -> orchestrator -> {display, store}`, `orchestrator, display ->
//! {hypervisor, guest}`, and all of them `-> model`.

pub mod api;
pub mod config;
pub mod daemon;
pub mod display;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
pub mod guest;
pub mod hypervisor;
pub mod model;
pub mod orchestrator;
pub mod store;
