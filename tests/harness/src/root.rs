//! The root file system of a sandbox: the program and /proc, and where needed an emulator or the
//! machine's libraries.

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::libc;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::unistd::{chdir, pivot_root};
use std::env;
use std::ffi::{CStr, CString};
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

/// Path of the emulator, if there is one. The kernel takes a process's name from the file's.
pub(crate) const EMULATOR: &CStr = c"/emulator/pause";

/// Makes a root with `/pause` and `/proc` in it, moves there, and unmounts the machine's.
pub(crate) fn enter_root(program: &Path, emulator: Option<&Path>, libraries: bool) -> Result<()> {
    let nothing = None::<&str>;
    let mut programs = vec![("pause", program)];
    programs.extend(emulator.map(|emulator| ("emulator/pause", emulator)));
    let read = |(name, path): (&'static str, &Path)| {
        let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok((name, bytes))
    };
    let programs = programs.into_iter().map(read).collect::<Result<Vec<_>>>()?;
    mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing)
        .context("cannot make the mounts private")?;
    let root = env::temp_dir();
    mount(nothing, &root, Some("tmpfs"), MsFlags::empty(), Some("mode=755"))
        .with_context(|| format!("cannot mount a tmpfs on {}", root.display()))?;
    chdir(&root)?;
    fs::create_dir("emulator")?;
    for (name, program) in programs {
        fs::write(name, program)?;
        fs::set_permissions(name, Permissions::from_mode(0o755))?;
    }
    fs::create_dir("proc")?;
    mount(nothing, "proc", Some("proc"), MsFlags::empty(), nothing).context(
        "cannot mount /proc; inside a container the engine must not mask parts of it \
         (docker run --security-opt systempaths=unconfined)",
    )?;
    if libraries {
        bind_libraries()?;
    }
    pivot_root(".", ".").context("cannot change the root")?;
    umount2(".", MntFlags::MNT_DETACH).context("cannot unmount the machine's root")?;
    Ok(chdir("/")?)
}

/// Makes the machine's shared libraries visible below the current folder, wherever it has them.
fn bind_libraries() -> Result<()> {
    for folder in ["lib", "lib32", "lib64", "usr", "nix", "gnu"] {
        let original = Path::new("/").join(folder);
        if let Ok(target) = fs::read_link(&original) {
            symlink(target, folder)?;
        } else if original.is_dir() {
            fs::create_dir(folder)?;
            let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
            mount(Some(&original), folder, None::<&str>, flags, None::<&str>)
                .with_context(|| format!("cannot bind {}", original.display()))?;
            make_read_only(folder)
                .with_context(|| format!("cannot make {} read-only", original.display()))?;
        }
    }
    Ok(())
}

/// Makes a mount and all that are below it read-only, in this mount namespace alone.
fn make_read_only(folder: &str) -> Result<()> {
    let folder = CString::new(folder)?;
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_RDONLY,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    let (flags, size) = (libc::AT_RECURSIVE, size_of_val(&attributes));
    // SAFETY: both pointers are valid during the call, which only reads from them.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            folder.as_ptr(),
            flags,
            &raw const attributes,
            size,
        )
    };
    Errno::result(result)?;
    Ok(())
}
