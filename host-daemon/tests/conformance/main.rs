//! What every hypervisor backend guarantees, checked on each: one body of checks, instantiated per backend.
//!
//! ```text
//!  conformance!(Rig) ──► checks (the trait's guarantees) ──► Rig: a backend, and hands inside its guests
//!                                                             ├─ sim       in this process
//!                                                             ├─ process   X servers and the real agent
//!                                                             └─ qemu      real VMs with a tiny guest; in the VM test group
//! ```
//!
//! A check asks a backend's capabilities what to expect: what it can do must work, what it can't must be refused. What a
//! check needs to know of a guest is whether its memory and its disk are what they should be: a number that is counted up
//! in memory, and a word on the disk.
//!
//! A new backend implements [`rig::Rig`] in a module of its own and says `conformance!(ItsRig);`.

mod checks;
mod rig;
mod session;
#[path = "../tiny_guest/mod.rs"]
mod tiny_guest;

/// Instantiates all checks for a backend.
macro_rules! conformance {
    ($rig:ty) => {
        $crate::conformance! { $rig:
            capabilities_agree_with_each_other,
            templates_are_imported_once,
            templates_that_can_not_be_are_refused_by_field,
            templates_are_sealed_from_their_own_vm,
            a_definition_is_made_once,
            what_is_not_there_is_not_found,
            what_has_happened_need_not_happen_again,
            illegal_moves_are_refused_and_change_nothing,
            what_a_backend_lacks_is_refused,
            a_dropped_call_leaves_a_vm_that_can_be_used,
            vms_move_side_by_side,
            memory_goes_on_after_a_save_and_a_pause,
            memory_is_gone_after_a_stop_and_the_disk_is_not,
            a_reset_from_any_state_leaves_a_clean_vm,
            checkpoints_are_kept_restored_and_deleted,
            forks_go_their_own_way,
            a_killed_process_is_told_once,
            what_was_asked_for_is_no_news,
            a_new_daemon_finds_what_the_old_one_left,
            a_survey_tells_what_each_vm_is_and_changes_nothing,
            a_survey_leaves_out_no_vm_in_the_middle_of_a_call,
            streams_end_with_their_vm_and_are_opened_again,
            screen_and_input_need_no_agent_where_the_backend_has_them,
        }
    };
    ($rig:ty: $($check:ident),+ $(,)?) => {
        $(
            #[tokio::test(flavor = "multi_thread")]
            async fn $check() {
                $crate::checks::$check::<$rig>().await;
            }
        )+
    };
}
pub(crate) use conformance;

mod process;
mod qemu;
mod sim;
