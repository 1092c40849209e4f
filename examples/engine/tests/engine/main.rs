//! The engine as a person meets it.

mod fixture;
mod leaves_nothing;
mod rootless;
mod run;
