//! The PINs that a card leaves the factory with. Provisioning does not change them.

/// The user PIN of both applets.
pub const PIN: &str = "123456";
/// The PIV PUK and the OpenPGP admin PIN.
pub const ADMIN_PIN: &str = "12345678";
