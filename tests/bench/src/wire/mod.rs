//! Real machines: one sends frames towards a forwarder, the one behind it counts what arrives.

mod generate;
mod route;
mod sink;

pub(crate) use self::generate::generate;
pub(crate) use self::sink::sink;
