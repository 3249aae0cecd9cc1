//! The reading of the command line, which is pure and can be tried without a process.

#[path = "../src/cli.rs"]
mod cli;

use cli::{HELP, Request, VERSION, parse};

#[test]
fn nothing_means_sleep() {
    assert_eq!(parse(None), Request::Sleep);
}

#[test]
fn each_spelling_is_known() {
    for argument in ["-v", "-V", "--version"] {
        assert_eq!(parse(Some(argument.as_bytes())), Request::Version, "{argument}");
    }
    for argument in ["-h", "--help"] {
        assert_eq!(parse(Some(argument.as_bytes())), Request::Help, "{argument}");
    }
}

#[test]
fn everything_else_is_unknown_and_kept_as_it_is() {
    let prefixes_and_extensions = ["", "-", "--", "-H", "-vv", "--versio", "--versions", "--hel"];
    for argument in prefixes_and_extensions.map(str::as_bytes).into_iter().chain([&b"\xff\0"[..]]) {
        assert_eq!(parse(Some(argument)), Request::Unknown(argument));
    }
}

#[test]
fn a_single_wrong_byte_makes_it_unknown() {
    for known in ["-v", "-V", "--version", "-h", "--help"] {
        for index in 0..known.len() {
            let mut argument = known.as_bytes().to_vec();
            argument[index] ^= 1;
            assert_eq!(
                parse(Some(&argument)),
                Request::Unknown(&argument),
                "{known}, byte {index}"
            );
        }
    }
}

#[test]
fn answers_are_lines() {
    assert_eq!(VERSION, format!("pause {}\n", env!("CARGO_PKG_VERSION")).as_bytes());
    assert!(HELP.starts_with(b"Usage: pause ") && HELP.ends_with(b".\n"));
}
