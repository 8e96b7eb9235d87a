//! Real containers: needs root, containerd, runc, iproute2 and iptables, and is asked for by the
//! feature `e2e`. Every test has a containerd of its own below a temporary directory, and a cluster
//! of its own, so that tests run side by side; what they leave on the machine is checked.

mod adoption;
mod harness;
mod images;
mod isolation;
mod lifecycle;
mod sandbox;
