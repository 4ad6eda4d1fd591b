//! The same test once more, in a process of the client's own: how that one ends is what is looked at.

use std::{env, process::Command, time::Duration};

use claviger_hw_tests::client::{self, Output};

use super::Stage;

/// Which scene a process plays; set in scenes only.
const SCENE: &str = "CLAVIGER_TEST_SCENE";

/// The scene that this process plays, if it does.
pub fn mine() -> Option<String> {
    env::var(SCENE).ok()
}

impl Stage {
    /// Plays a scene of this test, for `limit` at most.
    pub fn play(&self, scene: &str, limit: Duration) -> Output {
        self.play_under(
            Command::new(env::current_exe().expect("this program")),
            scene,
            limit,
        )
    }

    /// As [`Stage::play`], under another program: the first argument that `command` does not have is this one.
    pub fn play_under(&self, mut command: Command, scene: &str, limit: Duration) -> Output {
        let thread = std::thread::current();
        let test = thread.name().expect("a test has a name");
        command.args([test, "--exact", "--nocapture", "--test-threads=1"]);
        client::run(command.env(SCENE, scene), limit)
    }
}
