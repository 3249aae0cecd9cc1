//! The headers of the file, by which the kernel maps it: elf(5), `load_elf_binary` in the kernel's
//! fs/binfmt_elf.c.
//!
//! Every linker writes such headers, but none without a table of sections at the end of the file, or
//! the room for one, which nothing reads at run time. These are the whole of it, whatever links.

use super::arch;
use core::mem::offset_of;
use core::ptr;
#[cfg(target_pointer_width = "32")]
use libc::Elf32_Ehdr as Elf;
#[cfg(target_pointer_width = "64")]
use libc::Elf64_Ehdr as Elf;

/// `e_ident`: the size of addresses, the order of bytes, the version of the format.
const CLASS: u8 = if size_of::<usize>() == 4 { libc::ELFCLASS32 } else { libc::ELFCLASS64 };
const ORDER: u8 = if cfg!(target_endian = "big") { libc::ELFDATA2MSB } else { libc::ELFDATA2LSB };
const VERSION: u8 = libc::EV_CURRENT as u8;

/// What pause.ld puts at the start of the file, with `_start` behind it.
#[used]
#[unsafe(link_section = ".headers")]
static HEADERS: Headers = Headers {
    elf: Elf {
        e_ident: [0x7f, b'E', b'L', b'F', CLASS, ORDER, VERSION, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        // To be mapped wherever there is room.
        e_type: libc::ET_DYN,
        e_machine: arch::MACHINE,
        e_version: libc::EV_CURRENT,
        e_entry: size_of::<Headers>() as _,
        e_phoff: offset_of!(Headers, load) as _,
        e_shoff: 0,
        e_flags: arch::FLAGS,
        e_ehsize: size_of::<Elf>() as u16,
        e_phentsize: size_of::<Segment>() as u16,
        e_phnum: 2,
        e_shentsize: 0,
        e_shnum: 0,
        e_shstrndx: 0,
    },
    // All of the file. Text beside the code saves a segment, a page of memory and a fault.
    load: Segment::new(libc::PT_LOAD, libc::PF_R | libc::PF_X, &raw const file_size),
    // Without this header some architectures make the stack executable.
    stack: Segment::new(libc::PT_GNU_STACK, libc::PF_R | libc::PF_W, ptr::null()),
};

unsafe extern "C" {
    /// Its address is the size of the file, from pause.ld: only the linker knows.
    static file_size: u8;
}

#[repr(C)]
struct Headers {
    elf: Elf,
    load: Segment,
    stack: Segment,
}

// SAFETY: the pointers are sizes, and nobody follows them.
unsafe impl Sync for Headers {}

/// `Elf32_Phdr` or `Elf64_Phdr`, with the sizes as pointers: a symbol's value is one to Rust.
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
    /// From the start of the file, and from wherever that is mapped: in step for any size of page.
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
