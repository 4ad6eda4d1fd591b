//! Prints the udev rules of raw USB, as they belong into `udev/70-claviger.rules`.

fn main() {
    print!("{}", claviger_driver::ccid::udev_rules());
}
