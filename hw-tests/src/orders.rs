//! A rig's remote control: what the client of a card may ask of the process that holds it.
//!
//! | line | does | answers |
//! |---|---|---|
//! | `crash` | [`Rig::crash_service`] | `ok` |
//! | `begin` | [`Rig::begin_service`] | `ok` |
//! | `settle` | [`Rig::settle`] | `ok` |
//! | `freeze`, `thaw` | stops pcscd in its tracks, lets it go on | `ok` |
//! | `exchange` | [`Rig::exchange_card`] | `ok` |
//! | `delay INS MS` | the next frame of this instruction comes to the card so much later | `ok` |
//! | `caught` | | whether that frame has come: `yes` or `no` |
//! | `pins` | | PINs sent to the card so far |
//!
//! Everything else is for the card's reader ([`crate::control`]).

use std::{
    io,
    path::Path,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use crate::{
    control::{self, done, refused},
    reader::Checkpoint,
    rig::Rig,
};

/// Listens at `path` for orders to `rig`, as long as there is one. The rig's frames pass a [`Checkpoint`] from now
/// on, unless the test gives them another fate.
///
/// # Errors
/// When the socket cannot be made.
pub fn listen(path: &Path, rig: &Arc<Mutex<Rig>>) -> io::Result<()> {
    let checkpoint = Checkpoint::default();
    checkpoint.guard(rig.lock().unwrap_or_else(PoisonError::into_inner).card());
    let rig = Arc::downgrade(rig);
    control::serve(path, move |line, reply| {
        reply(&obey(line, &rig, &checkpoint))
    })
}

fn obey(line: &str, rig: &Weak<Mutex<Rig>>, checkpoint: &Checkpoint) -> String {
    if let Some(answer) = pass(line, checkpoint) {
        return answer;
    }
    let Some(rig) = rig.upgrade() else {
        return refused(&"the card is gone");
    };
    let mut rig = rig.lock().unwrap_or_else(PoisonError::into_inner);
    match line {
        "crash" => done(|| rig.crash_service()),
        "begin" => done(|| rig.begin_service()),
        "settle" => done(|| rig.settle()),
        "freeze" | "thaw" => match (rig.pcscd_service(), line) {
            (Some(pcscd), "freeze") => done(|| pcscd.freeze()),
            (Some(pcscd), _) => done(|| pcscd.thaw()),
            (None, _) => refused(&"there is no pcscd"),
        },
        "exchange" => done(|| {
            rig.exchange_card();
            checkpoint.guard(rig.card());
        }),
        _ => {
            let reader = rig.card().clone();
            drop(rig);
            control::answer(line, &reader)
        }
    }
}

/// What needs no rig.
fn pass(line: &str, checkpoint: &Checkpoint) -> Option<String> {
    match line.split(' ').collect::<Vec<_>>()[..] {
        ["pins"] => Some(checkpoint.pins().to_string()),
        ["caught"] => Some(if checkpoint.has_caught() { "yes" } else { "no" }.to_owned()),
        ["delay", instruction, time] => {
            let instruction = u8::from_str_radix(instruction, 16).ok()?;
            let time = Duration::from_millis(time.parse().ok()?);
            Some(done(|| checkpoint.delay(instruction, time)))
        }
        _ => None,
    }
}
