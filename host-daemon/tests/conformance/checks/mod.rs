//! The checks, each a guarantee of the trait.

mod ends;
mod memory;
mod moments;
mod moves;
mod streams;
mod templates;

pub(crate) use ends::*;
pub(crate) use memory::*;
pub(crate) use moments::*;
pub(crate) use moves::*;
pub(crate) use streams::*;
pub(crate) use templates::*;
