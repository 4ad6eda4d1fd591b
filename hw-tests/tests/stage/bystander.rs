//! Another program that pcscd tells of the same events: the moment from which the module could know of them.

use std::{
    sync::mpsc::{self, Receiver, Sender},
    thread,
    time::{SystemTime, UNIX_EPOCH},
};

use pcsc::{Context, ReaderState, Scope, State};

/// Seconds since 1970: the card's process tells the time of its events so.
pub fn now() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs_f64()
}

/// The times at which pcscd told a program of its own of each insertion and removal in the rig's reader.
pub fn pcscd_events() -> Receiver<f64> {
    let (told, times) = mpsc::channel();
    let context = Context::establish(Scope::User).unwrap();
    let readers = context.list_readers_owned().unwrap();
    // Its empty twin has no events.
    let reader = readers.into_iter().min().unwrap();
    let mut states = [ReaderState::new(reader, State::UNAWARE)];
    context.get_status_change(None, &mut states).unwrap();
    thread::spawn(move || follow(&context, states, &told));
    times
}

fn follow(context: &Context, mut states: [ReaderState; 1], told: &Sender<f64>) {
    loop {
        let before = states[0].event_state().contains(State::PRESENT);
        states[0].sync_current_state();
        context.get_status_change(None, &mut states).unwrap();
        if states[0].event_state().contains(State::PRESENT) != before && told.send(now()).is_err() {
            return;
        }
    }
}
