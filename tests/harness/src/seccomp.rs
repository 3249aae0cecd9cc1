//! Filters that answer system calls in the kernel's place: seccomp(2). They hold for the process
//! that sets them, across exec.

use anyhow::Result;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, apply_filter,
};
use std::env;

/// Lets the kernel answer a system call with `errno` from now on; with an argument only if that is
/// its first.
pub fn refuse(call: i64, first: Option<i32>, errno: i32) -> Result<()> {
    let mut rules = Vec::new();
    if let Some(value) = first {
        let (length, value) = (SeccompCmpArgLen::Dword, value as u64);
        let condition = SeccompCondition::new(0, length, SeccompCmpOp::Eq, value)?;
        rules.push(SeccompRule::new(vec![condition])?);
    }
    let (otherwise, action) = (SeccompAction::Allow, SeccompAction::Errno(errno as u32));
    let calls = [(call, rules)].into();
    let filter = SeccompFilter::new(calls, otherwise, action, env::consts::ARCH.try_into()?)?;
    let program: BpfProgram = filter.try_into()?;
    Ok(apply_filter(&program)?)
}
