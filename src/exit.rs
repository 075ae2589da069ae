//! The exit codes of the requirements, and the error that carries one.
//!
//! An error gets its code where it happens: [`Fault`] is put into the
//! `anyhow` chain there, and [`code_of`] reads it where the process ends.

use std::fmt;

/// Exit codes, as the requirements document lists them, and 10 for `plan`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Code {
    /// Everything is as the settings say.
    Success = 0,
    /// What none of the others names: not root, say.
    General = 1,
    /// Arguments or settings that cannot be read.
    Input = 2,
    /// No such container on this node.
    NoContainer = 3,
    /// The host's side: device nodes, mount entries, the conf.
    Passthrough = 4,
    /// The container's side: driver, CUDA, verification.
    Software = 5,
    /// The container did not stop or start in time.
    Restart = 6,
    /// `plan` only: there is something to do.
    Pending = 10,
}

impl Code {
    /// Every code, in the order of the table in the man page.
    pub const ALL: [Code; 8] = [
        Code::Success,
        Code::General,
        Code::Input,
        Code::NoContainer,
        Code::Passthrough,
        Code::Software,
        Code::Restart,
        Code::Pending,
    ];

    /// One phrase for help, man page and log.
    pub fn meaning(self) -> &'static str {
        match self {
            Code::Success => "success",
            Code::General => "general error",
            Code::Input => "invalid input or arguments",
            Code::NoContainer => "the container does not exist",
            Code::Passthrough => "host GPU passthrough configuration error",
            Code::Software => "NVIDIA software installation or configuration error",
            Code::Restart => "container restart failed",
            Code::Pending => "plan: changes are pending",
        }
    }
}

impl From<Code> for std::process::ExitCode {
    fn from(code: Code) -> Self {
        std::process::ExitCode::from(code as u8)
    }
}

/// An error that knows its exit code and, where there is one, the command
/// that fixes it.
#[derive(Debug, Clone)]
pub struct Fault {
    /// What the process exits with.
    pub code: Code,
    /// What failed, on what.
    pub message: String,
    /// What to do: a command, or the place of the setting.
    pub remedy: Option<String>,
}

impl Fault {
    /// A fault without a remedy.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Fault { code, message: message.into(), remedy: None }
    }

    /// Adds what fixes it.
    #[must_use]
    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }

    /// The error that this fault is, with its cause. A remedy of the cause stays
    /// the remedy, where the fault has none of its own.
    pub fn caused_by(mut self, cause: impl Into<anyhow::Error>) -> anyhow::Error {
        let cause = cause.into();
        // No search finds it below a second fault.
        self.remedy = self.remedy.or_else(|| remedy_of(&cause).map(str::to_owned));
        cause.context(self)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Fault {}

/// Gives the error of a result its exit code, and says what was being done.
pub trait Context<T> {
    /// On error: the fault that `fault` makes, with the error as its cause.
    fn fault(self, fault: impl FnOnce() -> Fault) -> anyhow::Result<T>;
}

impl<T, E> Context<T> for Result<T, E>
where
    E: Into<anyhow::Error>,
{
    fn fault(self, fault: impl FnOnce() -> Fault) -> anyhow::Result<T> {
        self.map_err(|error| fault().caused_by(error))
    }
}

/// The code of the outermost [`Fault`] in the chain; [`Code::General`] if
/// there is none, or if it only failed because a signal told us to stop.
pub fn code_of(error: &anyhow::Error) -> Code {
    if interrupted(error) {
        return Code::General;
    }
    error.downcast_ref::<Fault>().map_or(Code::General, |fault| fault.code)
}

/// Whether the error is that a signal told us to stop.
pub fn interrupted(error: &anyhow::Error) -> bool {
    error.chain().any(|e| e.is::<crate::sys::signal::Interrupted>())
}

/// The outermost remedy in the chain.
pub fn remedy_of(error: &anyhow::Error) -> Option<&str> {
    let outer = error.downcast_ref::<Fault>().and_then(|f| f.remedy.as_deref());
    outer.or_else(|| error.chain().find_map(|e| e.downcast_ref::<Fault>().and_then(|f| f.remedy.as_deref())))
}

/// The error in one line, causes after colons. A cause that its error repeats, as
/// an interruption is, appears once.
pub fn one_line(error: &anyhow::Error) -> String {
    let mut parts: Vec<String> = error.chain().map(ToString::to_string).collect();
    parts.dedup();
    parts.join(": ")
}

/// Runs a part of a start; a bug of ours in it is an error like another, since
/// a start must not fail for it.
///
/// # Errors
/// Those of `part`; [`Code::General`] when it panicked.
pub fn caught<T>(part: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(part)).unwrap_or_else(|_| {
        Err(Fault::new(Code::General, "a bug in phoenix-nvidia; the lines above say where")
            .remedy("report it with those lines")
            .into())
    })
}

/// A remedy as every message prints it.
pub fn fix(remedy: &str) -> String {
    format!("fix: {remedy}")
}

/// Logs an error, and below it its remedy.
pub fn tell(level: log::Level, error: &anyhow::Error) {
    log::log!(level, "{}", one_line(error));
    if let Some(remedy) = remedy_of(error) {
        log::log!(level, "{}", fix(remedy));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::fetch::FetchError;
    use crate::sys::signal::Interrupted;

    #[test]
    fn the_codes_are_those_of_the_requirements() {
        let table: Vec<u8> = Code::ALL.iter().map(|c| *c as u8).collect();
        assert_eq!(table, [0, 1, 2, 3, 4, 5, 6, 10]);
    }

    #[test]
    fn the_outermost_fault_decides_the_code() {
        let inner = anyhow::anyhow!("EACCES").context(Fault::new(Code::Passthrough, "conf"));
        assert_eq!(code_of(&inner), Code::Passthrough);
        let outer = inner.context("while configuring").context(Fault::new(Code::Restart, "start"));
        assert_eq!(code_of(&outer), Code::Restart);
        assert_eq!(one_line(&outer), "start: while configuring: conf: EACCES");
        let interrupted = FetchError::Interrupted(Interrupted(15));
        assert_eq!(
            one_line(&anyhow::Error::new(interrupted).context("conf")),
            "conf: interrupted by SIGTERM"
        );
        assert_eq!(code_of(&anyhow::anyhow!("plain")), Code::General);
    }

    #[test]
    fn a_panic_is_an_error_like_another() {
        let error = caught::<()>(|| panic!("no such thing")).unwrap_err();
        assert_eq!(code_of(&error), Code::General);
        assert_eq!(caught(|| Ok(3)).unwrap(), 3);
    }

    #[test]
    fn a_remedy_further_in_is_still_found() {
        let fault = |message| Fault::new(Code::Software, message);
        let error = fault("b").caused_by(fault("a").remedy("do this"));
        assert_eq!(remedy_of(&error), Some("do this"));
        let error = fault("c").caused_by(fault("b").remedy("do that").caused_by(anyhow::anyhow!("a")));
        assert_eq!(remedy_of(&fault("d").caused_by(error.context("while"))), Some("do that"));
        assert_eq!(
            remedy_of(&fault("b").remedy("mine").caused_by(fault("a").remedy("do this"))),
            Some("mine")
        );
    }
}
