//! What a process has and what it leaves behind: threads, open files, and where it hangs.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{self, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// How often a watchdog looks.
const LOOK: Duration = Duration::from_millis(50);

/// PF_EXITING: the kernel sets it before it tells whoever joins the thread, and lists the thread for a moment longer.
const EXITING: u32 = 4;

/// Threads of this process; those that have ended do not count, though the kernel may list them still.
fn tasks() -> Vec<PathBuf> {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    let tasks = tasks.map(|task| task.unwrap().path());
    tasks.filter(|task| is_running(task)).collect()
}

fn is_running(task: &Path) -> bool {
    let Ok(stat) = fs::read_to_string(task.join("stat")) else {
        return false;
    };
    // State, parent, group, session, terminal and its group come first (proc(5)).
    let fields = stat.rsplit_once(") ").map(|(_, fields)| fields);
    let flags = fields.and_then(|fields| fields.split(' ').nth(6)?.parse::<u32>().ok());
    flags.is_some_and(|flags| flags & EXITING == 0)
}

/// Threads of this process whose names are the module's.
pub fn module_threads() -> Vec<String> {
    let name = |task: PathBuf| fs::read_to_string(task.join("comm")).unwrap_or_default();
    let names = tasks().into_iter().map(name);
    names.filter(|name| name.starts_with("claviger")).collect()
}

/// What C_Finalize, which has joined its threads, left behind of them.
pub fn left_threads() -> Vec<String> {
    module_threads()
}

pub fn thread_count() -> usize {
    tasks().len()
}

/// What each descriptor of this process is, in order; sockets are told by their numbers.
pub fn open_files() -> Vec<String> {
    let target =
        |entry: fs::DirEntry| fs::read_link(entry.path()).map(|path| path.display().to_string());
    let entries = fs::read_dir("/proc/self/fd").unwrap().map(Result::unwrap);
    // The folder that is being listed is an open file too.
    let mut files: Vec<String> = entries
        .filter_map(|entry| target(entry).ok())
        .filter(|path| !path.contains("/proc/"))
        .collect();
    files.sort_unstable();
    files
}

/// Where the threads of a process are, for whoever reads why a test failed.
pub fn backtraces(pid: u32) -> String {
    let pid = pid.to_string();
    let mut gdb = Command::new("gdb");
    gdb.args(["-p", &pid, "-batch", "-ex", "thread apply all bt 16"]);
    let output = gdb.stdin(Stdio::null()).stderr(Stdio::null()).output();
    let told = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let told = told.unwrap_or_default();
    let frames = told
        .lines()
        .filter(|line| line.starts_with('#') || line.starts_with("Thread"));
    let frames: Vec<&str> = frames.collect();
    if frames.is_empty() {
        kernel_view(Path::new("/proc").join(pid).as_path())
    } else {
        frames.join("\n")
    }
}

/// Without gdb, each thread's system call is better than nothing.
fn kernel_view(process: &Path) -> String {
    let tasks = fs::read_dir(process.join("task")).into_iter().flatten();
    let line = |task: fs::DirEntry| {
        let of = |name| fs::read_to_string(task.path().join(name)).unwrap_or_default();
        format!("{} in system call {}", of("comm").trim(), of("syscall"))
    };
    tasks.filter_map(Result::ok).map(line).collect()
}

/// Ends the process, with its backtraces, when one step of a test takes longer than its limit.
pub struct Watchdog {
    step: Arc<Mutex<(String, Instant)>>,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watchdog {
    pub fn new(limit: Duration) -> Self {
        let step = Arc::new(Mutex::new(("the first step".to_owned(), Instant::now())));
        let over = Arc::new(AtomicBool::new(false));
        let (watched, until) = (Arc::clone(&step), Arc::clone(&over));
        let watch = move || {
            while !until.load(Ordering::SeqCst) {
                thread::sleep(LOOK);
                let (what, since) = watched.lock().unwrap().clone();
                if since.elapsed() > limit {
                    eprintln!(
                        "{what} hangs: more than {limit:?}\n{}",
                        backtraces(process::id())
                    );
                    process::abort();
                }
            }
        };
        Self {
            step,
            over,
            thread: Some(thread::spawn(watch)),
        }
    }

    /// A new step begins.
    pub fn begin(&self, what: String) {
        *self.step.lock().unwrap() = (what, Instant::now());
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
