//! The headers by which the kernel maps the file: elf(5), `load_elf_binary` in the kernel's
//! fs/binfmt_elf.c.
//!
//! Linkers write such headers, too, but add a table of sections, or leave room for one, which nothing
//! reads at run time. Here the file has these headers and nothing else.

use super::Abi;
use super::arch::Arch;
use core::mem::offset_of;
use core::ptr;
#[cfg(target_pointer_width = "32")]
use libc::{Elf32_Ehdr as Elf, Elf32_Shdr as Section};
#[cfg(target_pointer_width = "64")]
use libc::{Elf64_Ehdr as Elf, Elf64_Shdr as Section};

/// `e_ident`: address size, byte order and version of the format.
const CLASS: u8 = if size_of::<usize>() == 4 { libc::ELFCLASS32 } else { libc::ELFCLASS64 };
const ORDER: u8 = if cfg!(target_endian = "big") { libc::ELFDATA2MSB } else { libc::ELFDATA2LSB };
const VERSION: u8 = libc::EV_CURRENT as u8;

/// pause.ld puts this at the start of the file, followed by `_start`.
#[used]
#[unsafe(link_section = ".headers")]
static HEADERS: Headers = Headers {
    elf: Elf {
        e_ident: [0x7f, b'E', b'L', b'F', CLASS, ORDER, VERSION, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        // The kernel chooses the address.
        e_type: libc::ET_DYN,
        e_machine: Arch::MACHINE,
        e_version: libc::EV_CURRENT,
        e_entry: size_of::<Headers>() as _,
        e_phoff: offset_of!(Headers, load) as _,
        e_shoff: 0,
        e_flags: Arch::FLAGS,
        e_ehsize: size_of::<Elf>() as u16,
        e_phentsize: size_of::<Segment>() as u16,
        e_phnum: 2,
        // There are no sections, but ClamAV calls a file with another size broken.
        e_shentsize: size_of::<Section>() as u16,
        e_shnum: 0,
        e_shstrndx: 0,
    },
    // The whole file: read-only data in the code's segment saves a page of memory and a page fault.
    load: Segment::new(libc::PT_LOAD, libc::PF_R | libc::PF_X, &raw const file_size),
    // Without this header some architectures make the stack executable.
    stack: Segment::new(libc::PT_GNU_STACK, libc::PF_R | libc::PF_W, ptr::null()),
};

unsafe extern "C" {
    /// Defined in pause.ld: its address is the size of the file, which only the linker knows.
    static file_size: u8;
}

#[repr(C)]
struct Headers {
    elf: Elf,
    load: Segment,
    stack: Segment,
}

// SAFETY: the pointers are sizes, and never dereferenced.
unsafe impl Sync for Headers {}

/// `Elf32_Phdr` or `Elf64_Phdr`, with the sizes as pointers, because a symbol's value is a pointer in
/// Rust.
#[repr(C)]
struct Segment {
    kind: u32,
    #[cfg(target_pointer_width = "64")]
    flags: u32,
    offset: usize,
    address: usize,
    physical_address: usize,
    size_in_file: *const u8,
    size_in_memory: *const u8,
    #[cfg(target_pointer_width = "32")]
    flags: u32,
    align: usize,
}

impl Segment {
    /// A segment from the start of the file on: offset and address agree for every page size.
    const fn new(kind: u32, flags: u32, size: *const u8) -> Self {
        Self {
            kind,
            flags,
            offset: 0,
            address: 0,
            physical_address: 0,
            size_in_file: size,
            size_in_memory: size,
            align: 4096,
        }
    }
}
