//! The whole product on real VMs and with real clients. One program, since linking one is quicker than linking seven;
//! one test per file, since each boots a template first.

mod bad_input;
mod cli;
mod crash;
mod desk;
mod edge_cases;
mod grpcurl;
mod pool_operations;
mod screen;
mod vm_lifecycle;
