//! Filters that answer system calls in the kernel's place: seccomp(2). They hold for the process
//! that sets them, across exec.

use anyhow::Result;
use nix::libc;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, apply_filter,
};
use std::env;

/// Lets the kernel answer a system call with `errno` from now on; with an argument only if that is
/// its first.
pub fn refuse(call: i64, first: Option<i32>, errno: i32) -> Result<()> {
    let rules = match first {
        None => Vec::new(),
        Some(value) => {
            let (length, value) = (SeccompCmpArgLen::Dword, value as u64);
            let condition = SeccompCondition::new(0, length, SeccompCmpOp::Eq, value)?;
            vec![SeccompRule::new(vec![condition])?]
        }
    };
    apply([(call, rules)], SeccompAction::Allow, SeccompAction::Errno(errno as u32))
}

/// Lets the kernel kill this process at any system call but `calls` and execve(2).
pub fn allow_only(calls: impl IntoIterator<Item = i64>) -> Result<()> {
    let calls = calls.into_iter().chain([libc::SYS_execve]);
    apply(calls.map(|call| (call, Vec::new())), SeccompAction::KillProcess, SeccompAction::Allow)
}

fn apply(
    rules: impl IntoIterator<Item = (i64, Vec<SeccompRule>)>,
    otherwise: SeccompAction,
    action: SeccompAction,
) -> Result<()> {
    let rules = rules.into_iter().collect();
    let filter = SeccompFilter::new(rules, otherwise, action, env::consts::ARCH.try_into()?)?;
    let program: BpfProgram = filter.try_into()?;
    Ok(apply_filter(&program)?)
}
