// Sandbox-init does what a container runtime has to do for a PID 1 without an image: it starts /pause from
// memory in an empty root, joins two processes, which leave orphans behind, and stops it.
//
//	cp ../../target/release/pause . && go build && sudo ./sandbox-init
//	unshare --user --map-root-user ./sandbox-init # as an ordinary user
package main

import (
	_ "embed"
	"fmt"
	"log"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

//go:embed pause
var pause []byte

func main() {
	runtime.LockOSThread() // setns, the parent-death signal and execveat are about one thread.
	if os.Args[0] == "init" {
		becomeInit()
	}
	pidfd, init := -1, exec.Cmd{Path: "/proc/self/exe", Args: []string{"init"}, Stderr: os.Stderr}
	init.SysProcAttr = &unix.SysProcAttr{PidFD: &pidfd, Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS}
	check(init.Start())
	proc := fmt.Sprintf("/proc/%d/", init.Process.Pid)
	// Go has several threads, /pause has one. It would miss a SIGTERM before it sleeps. (Z: it has failed.)
	await(proc+"status", `(?s)State:\tS.*Threads:\t1\n.*NoNewPrivs:\t1|State:\tZ`)
	fmt.Println(len(pause), "bytes from memory are PID 1, outside", init.Process.Pid)
	check(unix.Setns(pidfd, unix.CLONE_NEWPID)) // The next children of this thread are in there.
	stdin, holdsOrphans, _ := os.Pipe()
	for range 2 {
		script := "exec 3<&0; for i in 1 2 3 4 5; do cat <&3 & done"
		check((&exec.Cmd{Path: "/bin/sh", Args: []string{"sh", "-c", script}, Stdin: stdin}).Run())
	}
	children := fmt.Sprintf("%stask/%d/children", proc, init.Process.Pid)
	fmt.Println("orphans:", await(children, `^(\d+ ){10}$`))
	wakeUps := func() string { return await(proc+"status", `\bvoluntary_ctxt_switches:.*`) }
	before := wakeUps()
	holdsOrphans.Close() // Each cat exits at the end of its input.
	fmt.Println("orphans and zombies left:", await(children, `^$`))
	if fmt.Println("PID 1:", before, "before, afterwards", wakeUps()); wakeUps() != before {
		log.Fatalln("sandbox-init: PID 1 was woken")
	}
	check(unix.PidfdSendSignal(pidfd, unix.SIGTERM, nil, 0))
	check(init.Wait())
	fmt.Println("after SIGTERM:", init.ProcessState)
}

// becomeInit replaces this process, which is PID 1 already, by /pause.
func becomeInit() {
	memory, err := unix.MemfdCreate("pause", unix.MFD_CLOEXEC|unix.MFD_EXEC)
	if err == unix.EINVAL { // Before Linux 6.3 there is no MFD_EXEC, and every memfd is executable.
		memory, err = unix.MemfdCreate("pause", unix.MFD_CLOEXEC)
	}
	check(err)
	_, err = unix.Write(memory, pause)
	check(err)
	check(unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
	check(unix.Mount("tmpfs", "/tmp", "tmpfs", unix.MS_RDONLY, "")) // The empty root; others do not see it.
	check(unix.Chdir("/tmp"))
	check(unix.PivotRoot(".", "."))
	check(unix.Unmount(".", unix.MNT_DETACH))
	for bit := uintptr(0); unix.Prctl(unix.PR_CAPBSET_DROP, bit, 0, 0, 0) == nil; bit++ {
	}
	if unix.Setgroups(nil) == nil { // Refused where an ordinary user made the namespace: it has one user.
		check(unix.Setresgid(65535, 65535, 65535))
		check(unix.Setresuid(65535, 65535, 65535))
	}
	check(unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
	// Comes last, because the kernel forgets this signal when the credentials change.
	check(unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0))
	path, argv, envp := []byte{0}, []*byte{&[]byte("pause\x00")[0], nil}, []*byte{nil}
	_, _, errno := unix.Syscall6(unix.SYS_EXECVEAT, uintptr(memory), uintptr(unsafe.Pointer(&path[0])),
		uintptr(unsafe.Pointer(&argv[0])), uintptr(unsafe.Pointer(&envp[0])), unix.AT_EMPTY_PATH, 0)
	check(errno)
}

// await reads a file until the pattern matches, and returns what matches.
func await(path, pattern string) string {
	for {
		text, err := os.ReadFile(path)
		check(err)
		if found := regexp.MustCompile(pattern).Find(text); found != nil {
			return string(found)
		}
	}
}

func check(err error) {
	if err != nil {
		log.Fatalln("sandbox-init:", err)
	}
}
