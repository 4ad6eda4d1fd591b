//! OpenPgp (being built).
#![allow(warnings)]
use crate::{
    applet::*, card::Conversation, error::TokenError, mechanism::MechanismInfo, object::*,
    operation::SignInput,
};
use claviger_apdu::*;
use std::sync::Arc;
pub(crate) const AID: &[u8] = &[0xD2, 0x76, 0, 1, 0x24, 1];
pub(crate) const PROBE: CommandApdu<'static> = CommandApdu::header([0, 0, 0, 0]);
pub(crate) fn is_application_data(_: &[u8]) -> bool {
    false
}
/// OpenPgp
pub struct OpenPgp;
impl OpenPgp {
    pub(crate) fn open(
        _: &mut Conversation<'_, '_>,
        _: &[u8],
        _: &Atr,
    ) -> Result<Self, TokenError> {
        panic!()
    }
}
impl Applet for OpenPgp {
    fn kind(&self) -> AppletKind {
        panic!()
    }
    fn info(&self) -> TokenInfo {
        panic!()
    }
    fn mechanisms(&self) -> Vec<MechanismInfo> {
        panic!()
    }
    fn extended_length(&self) -> bool {
        panic!()
    }
    fn note_probe(&mut self, _: &[u8]) -> Result<(), TokenError> {
        panic!()
    }
    fn check_pin(&self, _: &Secret) -> Result<(), TokenError> {
        panic!()
    }
    fn verify(
        &mut self,
        _: &mut Conversation<'_, '_>,
        _: &Secret,
        _: PinPurpose,
    ) -> Result<(), TokenError> {
        panic!()
    }
    fn pin_status(
        &mut self,
        _: &mut Conversation<'_, '_>,
        _: &PrivateKey,
    ) -> Result<PinStatus, TokenError> {
        panic!()
    }
    fn unverify(&mut self, _: &mut Conversation<'_, '_>) -> Result<(), TokenError> {
        panic!()
    }
    fn load(&mut self, _: &mut Conversation<'_, '_>, _: &Wanted) -> Result<(), TokenError> {
        panic!()
    }
    fn is_loaded(&self, _: &Wanted) -> bool {
        panic!()
    }
    fn forget_objects(&mut self) {
        panic!()
    }
    fn objects(&self) -> Vec<Arc<Object>> {
        panic!()
    }
    fn sign_command(&self, _: &PrivateKey, _: &SignInput) -> Result<OwnedCommand, TokenError> {
        panic!()
    }
    fn signature(&self, _: &PrivateKey, _: &[u8]) -> Result<Vec<u8>, TokenError> {
        panic!()
    }
    fn key_name(&self, _: &PrivateKey) -> String {
        panic!()
    }
}
