//! The same system in a virtual machine of qemu's: with systemd, the release's own kernel, all
//! capabilities, and control groups of version 2.

use super::{Debian, end, isolated};
use anyhow::{Context, Result, ensure};
use std::fs;
use std::process::Command;

const QEMU: &str = "qemu-system-x86_64";

impl Debian {
    /// Whether virtual machines of this host run on its CPU, instead of being emulated.
    pub fn has_kvm(&self) -> Result<bool> {
        // Without a disk, the kernel panics, and qemu ends; it does not where the CPU cannot do it.
        let mut probe = Command::new("timeout");
        let probe = probe.arg("30").arg(QEMU).args(["-accel", "kvm"]).args(self.kernel()?);
        let probe = probe.args(["-append", "console=ttyS0 panic=-1"]).output()?;
        Ok(String::from_utf8_lossy(&probe.stdout).contains("Kernel panic"))
    }

    /// Runs a command in a virtual machine with the system, and returns whether the command succeeded.
    /// The file `result`, if it wrote one, is afterwards where [`Debian::changed`] says.
    pub fn run_in_vm(&self, command: &[String], is_emulated: bool, result: &str) -> Result<bool> {
        let command: String = command.iter().map(|word| format!("'{word}' ")).collect();
        let job = format!(": >/run/thrown-away\n{command}\necho $? >/status\n");
        fs::write(self.changed("/job.sh"), job)?;
        let units = self.changed("/etc/systemd/system");
        fs::create_dir_all(&units)?;
        fs::write(units.join("job.service"), include_str!("job.service"))?;

        let run = self.folder.join("run");
        let mut make = isolated();
        make.args(["--", "sh", "-c", include_str!("disk.sh"), "sh"]);
        make.arg(&run).arg(self.shown.join(","));
        let status = end(&mut make)?;
        ensure!(status.success(), "cannot make a disk in {}: {status}", run.display());

        let disk = run.join("disk");
        let mut machine = isolated();
        machine.args(["--net", "--", QEMU, "-m", "4096", "-smp", "2", "-drive"]);
        machine.arg(format!("file={},format=raw,if=virtio,cache=unsafe", disk.display()));
        // Linux changes its own code while it runs. qemu's threads do not always see that of each other, and
        // the kernel panicked ("int3"): one thread emulates both CPUs.
        machine.args(["-accel", if is_emulated { "tcg,thread=single" } else { "kvm" }]);
        let systemd = "systemd.unit=job.service systemd.mask=tmp.mount systemd.show_status=no";
        let line = format!("root=/dev/vda rw console=ttyS0 quiet panic=-1 TERM=dumb {systemd}");
        machine.args(self.kernel()?).args(["-append", &line]);
        let status = end(&mut machine)?;
        ensure!(status.success(), "qemu: {status}");

        for file in ["/status", result] {
            let dump = format!("dump {file} {}", self.changed(file).display());
            let dump = Command::new("debugfs").arg("-R").arg(dump).arg(&disk).output();
            dump.context("cannot run debugfs, of e2fsprogs")?;
        }
        let status = fs::read_to_string(self.changed("/status")).unwrap_or_default();
        ensure!(
            !status.is_empty(),
            "the virtual machine stopped before the command ended; its console, above, says why"
        );
        Ok(status.trim() == "0")
    }

    /// The options of qemu for a machine with the kernel of the system.
    fn kernel(&self) -> Result<Vec<String>> {
        let found = which::which(QEMU).ok();
        found.context("qemu is needed: apt-get install qemu-system-x86")?;
        let mut options =
            ["-cpu", "max", "-nographic", "-no-reboot", "-nic", "none"].map(str::to_owned).to_vec();
        for (option, link) in [("-kernel", "vmlinuz"), ("-initrd", "initrd.img")] {
            let file = self.folder.join("root").join(link).canonicalize()?;
            options.extend([option.to_owned(), file.display().to_string()]);
        }
        Ok(options)
    }
}
