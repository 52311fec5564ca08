//! Drivers: the serial port, ways to end the machine, and (through `virtio-drivers`) disks.
pub mod power;
pub mod ram_disk;
pub mod serial;
