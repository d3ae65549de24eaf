//! What the server says to the terminal when it starts, and its log.
//!
//! The lines of the start are the official ones and go to the standard output; the log goes to the standard error,
//! so that the token, which the lines tell once, is never in it.

use std::io::{IsTerminal as _, Write as _};

use tracing_subscriber::EnvFilter;

/// Says a line of the start.
#[expect(clippy::print_stdout, reason = "these lines are for the person who starts the server")]
pub(crate) fn say(line: &str) {
    println!("{line}");
}

/// Asks on the terminal; without one, the answer is no.
pub(crate) fn ask(question: &str) -> bool {
    if !std::io::stdin().is_terminal() {
        return false;
    }
    let mut output = std::io::stdout();
    let asked = write!(output, "{question} [y/n] (n): ").and_then(|()| output.flush());
    let mut answer = String::new();
    let answered = asked.is_ok() && std::io::stdin().read_line(&mut answer).is_ok();
    answered && matches!(answer.trim().to_lowercase().as_str(), "y" | "yes")
}

/// Starts the log. `RUST_LOG`, where it is set, says more than the level does.
pub(crate) fn start_log(level: &str, debug: bool) {
    let level = match level.to_lowercase().as_str() {
        "trace" => "trace",
        "debug" => "debug",
        "warn" | "warning" => "warn",
        "error" | "critical" | "fatal" => "error",
        _ => "info",
    };
    // What libraries log is for those who debug the server.
    let directives =
        if debug { "debug,h2=info,sqlx=info".to_owned() } else { format!("warn,server={level},backends={level}") };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(directives));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(debug)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        // A line that cannot be written, on a full disk, is lost; complaining about it on the same disk would panic.
        .log_internal_errors(false);
    // A second start in one process, as tests do, keeps the first one's log.
    _ = log.try_init();
}

/// A path as people write it: with `~` for their home.
pub(crate) fn with_tilde(path: &std::path::Path, home: Option<&std::path::Path>) -> String {
    match home.and_then(|home| path.strip_prefix(home).ok()) {
        Some(rest) => format!("~/{}", rest.display()),
        None => path.display().to_string(),
    }
}

/// Says why the server ends, and how the process tells of it.
#[expect(clippy::print_stderr, reason = "the log may be switched off, and this is the last word")]
pub(crate) fn fail(error: &anyhow::Error) -> std::process::ExitCode {
    let text = format!("{error:#}");
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    eprintln!("error: {text}");
    std::process::ExitCode::FAILURE
}
