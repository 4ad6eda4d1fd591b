//! Prints the udev rules of raw USB, the content of `udev/70-claviger.rules`.

fn main() {
    print!("{}", claviger_driver::ccid::udev_rules());
}
