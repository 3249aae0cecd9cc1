//! The same system in a virtual machine of qemu's: with systemd, the release's own kernel, all
//! capabilities, and control groups of version 2.

use super::{Debian, end, isolated};
use anyhow::{Context, Result, ensure};
use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;

const QEMU: &str = "qemu-system-x86_64";

/// What systemd runs as soon as it is up. Its output is the machine's.
const UNIT: &str = "[Service]
Type=oneshot
ExecStart=/bin/sh /job.sh
StandardOutput=tty
StandardError=tty
TTYPath=/dev/ttyS0
";

/// What would be in the way: engines start their daemons themselves, and a process that starts late
/// looks like one that an engine left.
const MASKED: [&str; 11] = [
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "containerd.service",
    "docker.service",
    "docker.socket",
    "etcd.service",
    "getty.target",
    "nginx.service",
    "serial-getty@ttyS0.service",
    "systemd-logind.service",
    "tmp.mount",
];

/// Makes the disk in the folder $1, with a copy of what $2 shows.
const MAKE: &str = r#"
    cd "$1"
    mkdir -p work merged
    mount -t overlay -o lowerdir=../root,upperdir=upper,workdir=work overlay merged
    echo "$2" | tr , '\n' | while IFS=: read -r source place; do
        [ -n "$source" ] || continue
        mkdir -p "merged$place"
        mount --bind "$source" "merged$place"
    done
    mkfs.ext4 -q -d merged disk 12G
"#;

impl Debian {
    /// Whether virtual machines of this host run on its CPU, instead of being emulated.
    pub fn has_kvm(&self) -> Result<bool> {
        // Without a disk, the kernel panics, and qemu ends; it does not where the CPU cannot do it.
        let mut probe = Command::new("timeout");
        let probe = probe.arg("30").arg(QEMU).args(["-accel", "kvm"]).args(self.kernel()?);
        let probe = probe.args(["-append", "console=ttyS0 panic=-1"]).output()?;
        Ok(String::from_utf8_lossy(&probe.stdout).contains("Kernel panic"))
    }

    /// Runs a command in a virtual machine with the system, and returns its exit code. The files
    /// `results` come back to where [`Debian::changed`] names them.
    pub fn run_in_vm(&self, command: &[String], kvm: bool, results: &[&str]) -> Result<i32> {
        let units = self.changed("/etc/systemd/system");
        fs::create_dir_all(units.join("multi-user.target.wants"))?;
        fs::write(units.join("job.service"), UNIT)?;
        symlink("../job.service", units.join("multi-user.target.wants/job.service"))?;
        for unit in MASKED {
            symlink("/dev/null", units.join(unit))?;
        }
        let command = command.iter().map(|word| format!("'{word}'")).collect::<Vec<_>>().join(" ");
        let job = format!(
            "cd /\n: > /run/thrown-away\nexport HOME=/root LANG=C.UTF-8\n{command}\necho $? > /status\nsystemctl poweroff\n"
        );
        fs::write(self.changed("/job.sh"), job)?;

        let run = self.folder.join("run");
        let status =
            end(isolated().args(["--", "sh", "-euc", MAKE, "sh"]).arg(&run).arg(self.shown()))?;
        ensure!(status.success(), "cannot make a disk in {}: {status}", run.display());

        let disk = run.join("disk");
        let mut machine = isolated();
        machine.args(["--net", "--", QEMU, "-m", "4096", "-drive"]);
        machine.arg(format!("file={},format=raw,if=virtio,cache=unsafe", disk.display()));
        // Linux changes its own code while it runs. qemu's threads do not always see that of each other, and
        // the kernel panicked ("int3"): one thread emulates both CPUs.
        machine.args(["-smp", "2", "-accel", if kvm { "kvm" } else { "tcg,thread=single" }]);
        machine.args(self.kernel()?);
        let quiet = "quiet systemd.show_status=no panic=-1 TERM=dumb";
        machine.args(["-append", &format!("root=/dev/vda rw console=ttyS0 {quiet}")]);
        let status = end(&mut machine)?;
        ensure!(status.success(), "qemu: {status}");

        for file in [&["/status"], results].concat() {
            let place = self.changed(file);
            let dump = format!("dump {file} {}", place.display());
            let dump = Command::new("debugfs").arg("-R").arg(dump).arg(&disk).output();
            dump.context("cannot run debugfs, of e2fsprogs")?;
        }
        let status = fs::read_to_string(self.changed("/status")).unwrap_or_default();
        status.trim().parse().context(
            "the virtual machine stopped before the command ended; its console, above, says why",
        )
    }

    /// The options for the kernel of the system.
    fn kernel(&self) -> Result<Vec<String>> {
        let found = which::which(QEMU).is_ok();
        ensure!(found, "{QEMU} is needed: apt-get install qemu-system-x86");
        let file =
            |name| Ok::<_, anyhow::Error>(self.folder.join("root").join(name).canonicalize()?);
        let [kernel, initrd] = [file("vmlinuz")?, file("initrd.img")?];
        let mut options = ["-cpu", "max", "-nographic", "-no-reboot", "-nic", "none"].to_vec();
        let (kernel, initrd) = (kernel.display().to_string(), initrd.display().to_string());
        options.extend(["-kernel", &kernel, "-initrd", &initrd]);
        Ok(options.into_iter().map(str::to_owned).collect())
    }
}
