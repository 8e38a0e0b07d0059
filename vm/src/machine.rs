//! The machine as a value: its shape, and QEMU's arguments for it.
//!
//! The *shape* is what the guest sees: processors, memory, disks by serial and
//! size. A template saved with a shape can be cloned only by a machine of the
//! same shape, while what stands behind each disk may change.

use std::{
    os::fd::{AsRawFd, BorrowedFd},
    path::PathBuf,
};

/// How guest code is executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Accel {
    /// Hardware virtualisation.
    Kvm,
    /// QEMU's translator.
    Tcg,
}

impl std::fmt::Display for Accel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        })
    }
}

/// How a disk is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Bus {
    /// virtio-blk: no FUA, the guest sends write + flush.
    Virtio,
    /// An NVMe controller with one namespace: FUA.
    Nvme,
    /// A SCSI disk behind virtio-scsi, with DPO and FUA.
    Scsi,
}

/// What the guest sees of a disk.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct DiskShape {
    /// By which the guest finds it; at most 20 bytes.
    pub serial: String,
    /// How it is attached.
    pub bus: Bus,
    /// Capacity in bytes.
    pub bytes: u64,
    /// Physical block size in bytes: the unit that the disk never tears.
    pub physical_block: u32,
    /// The guest can only read it.
    pub read_only: bool,
}

/// What stands behind a disk.
#[derive(Debug)]
pub enum Medium<'a> {
    /// A raw image file.
    File(PathBuf),
    /// Nothing: reads give zeros, writes are lost. For templates, whose guests
    /// must not touch the disk.
    Null,
    /// An NBD server at the other end of a connected socket.
    Nbd(BorrowedFd<'a>),
}

/// The shape of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Shape {
    /// Execution.
    pub accel: Accel,
    /// Virtual processors.
    pub cpus: u32,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Disks, in the order of their PCI slots.
    pub disks: Vec<DiskShape>,
}

/// Everything that one start of QEMU depends on.
pub(crate) struct Machine<'a> {
    pub(crate) shape: &'a Shape,
    pub(crate) media: &'a [Medium<'a>],
    pub(crate) kernel: PathBuf,
    pub(crate) initrd: PathBuf,
    pub(crate) append: String,
    pub(crate) memory: MemoryFile,
    pub(crate) serial: BorrowedFd<'a>,
    pub(crate) qmp: BorrowedFd<'a>,
    pub(crate) to_host: BorrowedFd<'a>,
    pub(crate) to_guest: BorrowedFd<'a>,
    pub(crate) incoming: bool,
}

/// Where the guest's memory lives.
pub(crate) enum MemoryFile {
    /// Private to the process, as ever.
    Anonymous,
    /// In a file that keeps every change: a template that is being made.
    Shared(PathBuf),
    /// In a file, copied on write: a clone.
    Private(PathBuf),
}

/// Everything that QEMU can translate, but for the promise that byte-wise string instructions are
/// the fast way to copy and to clear memory. Linux believes it (`clear_page_erms`,
/// `copy_user_generic`), and each byte is then a turn of a translated loop.
const TRANSLATED_CPU: &str = "max,erms=off,fsrm=off";

impl Machine<'_> {
    /// QEMU's arguments, without the program.
    pub(crate) fn arguments(&self) -> Vec<String> {
        let mut args = Args::default();
        args.flag("-nodefaults")
            .flag("-no-user-config")
            .flag("-no-reboot");
        args.pair("-display", "none");
        args.pair(
            "-machine",
            "q35,memory-backend=ram,hpet=off,vmport=off,usb=off",
        );
        match self.shape.accel {
            Accel::Kvm => args.pair("-accel", "kvm").pair("-cpu", "host"),
            Accel::Tcg => args
                .pair("-accel", "tcg,thread=multi,tb-size=512")
                .pair("-cpu", TRANSLATED_CPU),
        };
        args.pair("-smp", self.shape.cpus.to_string());
        args.pair("-m", format!("{}M", self.shape.memory_mib));
        args.pair("-object", self.memory_object());
        args.channel("serial", &self.serial)
            .pair("-serial", "chardev:serial");
        args.channel("qmp", &self.qmp)
            .pair("-mon", "chardev=qmp,mode=control");
        args.pair("-device", "virtio-serial-pci,id=ports");
        for (id, fd, name) in [
            ("to-host", &self.to_host, plugpull_protocol::PORT_TO_HOST),
            ("to-guest", &self.to_guest, plugpull_protocol::PORT_TO_GUEST),
        ] {
            args.channel(id, fd);
            args.pair(
                "-device",
                format!("virtserialport,bus=ports.0,chardev={id},name={name}"),
            );
        }
        args.pair("-device", "pvpanic-pci");
        for (index, (shape, medium)) in self.shape.disks.iter().zip(self.media).enumerate() {
            args.disk(index, shape, medium);
        }
        args.pair("-kernel", path(&self.kernel));
        args.pair("-initrd", path(&self.initrd));
        args.pair("-append", self.append.clone());
        if self.incoming {
            args.pair("-incoming", "defer");
        }
        args.0
    }

    fn memory_object(&self) -> String {
        let size = self.shape.memory_mib;
        match &self.memory {
            MemoryFile::Anonymous => format!("memory-backend-ram,id=ram,size={size}M"),
            MemoryFile::Shared(file) => {
                format!(
                    "memory-backend-file,id=ram,size={size}M,mem-path={},share=on",
                    comma(&path(file))
                )
            }
            MemoryFile::Private(file) => {
                format!(
                    "memory-backend-file,id=ram,size={size}M,mem-path={},share=off",
                    comma(&path(file))
                )
            }
        }
    }
}

#[derive(Default)]
struct Args(Vec<String>);

impl Args {
    fn flag(&mut self, name: &str) -> &mut Self {
        self.0.push(name.to_owned());
        self
    }

    fn pair(&mut self, name: &str, value: impl Into<String>) -> &mut Self {
        self.0.extend([name.to_owned(), value.into()]);
        self
    }

    /// A connected socket that QEMU inherits: nothing on the filesystem can be
    /// left behind, and there is no connection to race for.
    fn channel(&mut self, id: &str, fd: &BorrowedFd<'_>) -> &mut Self {
        self.pair("-chardev", format!("socket,id={id},fd={}", fd.as_raw_fd()))
    }

    fn disk(&mut self, index: usize, shape: &DiskShape, medium: &Medium<'_>) {
        let read_only = if shape.read_only { "on" } else { "off" };
        let node = match medium {
            // Images are never changed, so clones share them without locks.
            Medium::File(file) => {
                format!("driver=file,filename={},locking=off", comma(&path(file)))
            }
            Medium::Null => format!("driver=null-co,size={},read-zeroes=on", shape.bytes),
            // QEMU's default hides discards; a disk that records wants them.
            Medium::Nbd(fd) => {
                format!(
                    "driver=nbd,server.type=fd,server.str={},discard=unmap",
                    fd.as_raw_fd()
                )
            }
        };
        self.pair(
            "-blockdev",
            format!("{node},node-name=disk{index},read-only={read_only}"),
        );
        // `werror` would otherwise pause the machine on ENOSPC.
        let common = format!(
            "drive=disk{index},serial={},logical_block_size=512,physical_block_size={},write-cache=on",
            shape.serial, shape.physical_block
        );
        let device = match shape.bus {
            Bus::Virtio => format!("virtio-blk-pci,{common},werror=report,rerror=report"),
            Bus::Nvme => format!("nvme,{common}"),
            Bus::Scsi => {
                self.pair("-device", format!("virtio-scsi-pci,id=scsi{index}"));
                format!("scsi-hd,bus=scsi{index}.0,dpofua=on,{common},werror=report,rerror=report")
            }
        };
        self.pair("-device", device);
    }
}

fn path(path: &std::path::Path) -> String {
    path.to_string_lossy().into_owned()
}

/// QEMU splits option values at commas; a doubled one stands for itself.
fn comma(text: &str) -> String {
    text.replace(',', ",,")
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    fn arguments(medium: Medium<'_>, memory: MemoryFile) -> Vec<String> {
        let null = std::fs::File::open("/dev/null").expect("opened");
        let shape = Shape {
            accel: Accel::Tcg,
            cpus: 2,
            memory_mib: 512,
            disks: vec![DiskShape {
                serial: String::from("data"),
                bus: Bus::Virtio,
                bytes: 1 << 30,
                physical_block: 4096,
                read_only: false,
            }],
        };
        Machine {
            shape: &shape,
            media: &[medium],
            kernel: "k".into(),
            initrd: "i".into(),
            append: String::new(),
            memory,
            serial: null.as_fd(),
            qmp: null.as_fd(),
            to_host: null.as_fd(),
            to_guest: null.as_fd(),
            incoming: false,
        }
        .arguments()
    }

    #[test]
    fn a_comma_in_a_path_is_doubled() {
        let args = arguments(
            Medium::File("/a,b".into()),
            MemoryFile::Private("/m,n".into()),
        )
        .join(" ");
        assert!(args.contains("filename=/a,,b,locking=off"), "{args}");
        assert!(args.contains("mem-path=/m,,n,share=off"), "{args}");
    }

    #[test]
    fn a_translated_guest_is_not_told_to_copy_byte_by_byte() {
        let args = arguments(Medium::Null, MemoryFile::Anonymous).join(" ");
        assert!(args.contains("-cpu max,erms=off,fsrm=off"), "{args}");
    }

    #[test]
    fn errors_are_reported_to_the_guest_and_flushes_are_kept() {
        let args = arguments(Medium::Null, MemoryFile::Anonymous).join(" ");
        assert!(args.contains("werror=report,rerror=report"), "{args}");
        assert!(args.contains("write-cache=on"), "{args}");
        assert!(!args.contains("unsafe"), "{args}");
    }
}
