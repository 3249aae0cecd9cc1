//! Parses the command line.

/// Output of `--version`.
pub const VERSION: &[u8] = concat!("pause ", env!("CARGO_PKG_VERSION"), "\n").as_bytes();

/// Output of `--help`.
pub const HELP: &[u8] = b"\
Usage: pause [-v|-V|--version|-h|--help]
Holds a pod's namespaces and reaps orphans until SIGTERM or SIGINT.
";

/// What the command line requests.
#[derive(Debug, PartialEq)]
pub enum Request<'a> {
    /// Hold the namespaces until SIGTERM or SIGINT.
    Sleep,
    /// Print [`VERSION`].
    Version,
    /// Print [`HELP`].
    Help,
    /// An unknown argument.
    Unknown(&'a [u8]),
}

/// Parses the first argument, if there is one. The others do not matter: with any first argument the
/// program exits.
pub fn parse(argument: Option<&[u8]>) -> Request<'_> {
    match argument {
        None => Request::Sleep,
        // Comparisons instead of patterns, because rustc compares a pattern byte by byte.
        Some(a) if a == b"-v" || a == b"-V" || a == b"--version" => Request::Version,
        Some(a) if a == b"-h" || a == b"--help" => Request::Help,
        Some(other) => Request::Unknown(other),
    }
}
