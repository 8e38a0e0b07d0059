//! The agent: takes requests from the host, carries each out on a thread of
//! its own, and answers.

use std::{
    fs,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use plugpull_protocol::{Failure, Hello, Reply, Request, ToGuest, ToHost, VERSION};
use rustix::system::{RebootCommand, reboot};

use crate::{
    channel::Channel,
    console::Console,
    devices, dm,
    errors::ErrorCount,
    mounts::{self, Servers},
    process::Spec,
    syncs::Syncs,
    workload,
};

/// Where the payload disk is mounted.
const PAYLOAD: &str = "/mnt/payload";
/// The user `postgres` of every image, by number: a static binary resolves no
/// names.
const POSTGRES_UID: u32 = 105;
/// Its group.
const POSTGRES_GID: u32 = 110;
/// Where its sockets and logs go, in memory.
const POSTGRES_RUN: &str = "/run/postgresql";

/// What requests share.
struct Agent {
    channel: Channel,
    servers: Servers,
    errors: Mutex<Option<ErrorCount>>,
    /// A disk that nobody has open loses its cache.
    read_ahead: Mutex<Option<fs::File>>,
    console: Console,
    /// What earlier requests have found out.
    sound: workload::Sound,
}

/// Run until the channel breaks.
pub(crate) fn run() -> Result<()> {
    let (channel, mut from_host) = Channel::open()?;
    channel.send(&ToHost::Hello(Hello {
        version: VERSION,
        build: build_hash()?,
        kernel: rustix::system::uname()
            .release()
            .to_string_lossy()
            .into_owned(),
    }))?;
    fs::create_dir_all(POSTGRES_RUN).with_context(|| format!("make {POSTGRES_RUN}"))?;
    std::os::unix::fs::chown(POSTGRES_RUN, Some(POSTGRES_UID), Some(POSTGRES_GID))
        .with_context(|| format!("give {POSTGRES_RUN} to the database's user"))?;
    let agent = Arc::new(Agent {
        channel,
        servers: Servers::default(),
        errors: Mutex::new(None),
        read_ahead: Mutex::new(None),
        console: Console::default(),
        sound: workload::Sound::default(),
    });
    loop {
        match Channel::receive(&mut from_host)? {
            ToGuest::Recorded { id } => agent.channel.recorded(id),
            ToGuest::Request { id, request } => agent.begin(id, vec![request])?,
            ToGuest::InOrder { first, requests } => agent.begin(first, requests)?,
        }
    }
}

/// The hash of this build, as the host put it on the kernel command line.
fn build_hash() -> Result<String> {
    let line = fs::read_to_string("/proc/cmdline")?;
    line.split_whitespace()
        .find_map(|word| word.strip_prefix("plugpull.build="))
        .map(str::to_owned)
        .context("the kernel command line has no plugpull.build=")
}

/// A word of the kernel command line that the image's recipe decides.
fn command_line_word(key: &str) -> Result<String> {
    let line = fs::read_to_string("/proc/cmdline")?;
    line.split_whitespace()
        .find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
        .map(str::to_owned)
        .with_context(|| format!("the kernel command line has no {key}="))
}

impl Agent {
    /// Carry out one request after the other on a thread of their own, until
    /// one fails.
    fn begin(self: &Arc<Self>, first: u64, requests: Vec<Request>) -> Result<()> {
        let agent = Arc::clone(self);
        let work = move || {
            let mut failed = false;
            for (id, request) in (first..).zip(requests) {
                failed = !match failed {
                    false => agent.answer(id, || agent.carry_out(request)),
                    true => agent.answer(id, || bail!("a request before it failed")),
                };
            }
        };
        std::thread::Builder::new()
            .name(format!("request-{first}"))
            .spawn(work)
            .map(drop)
            .context("start a thread for a request")
    }

    /// Answer with what comes of it; returns whether it went well.
    fn answer(&self, id: u64, work: impl FnOnce() -> Result<Reply>) -> bool {
        let result = work().map_err(|error| Failure {
            message: format!("{error:#}"),
            errno: error.chain().find_map(|cause| {
                cause
                    .downcast_ref::<rustix::io::Errno>()
                    .map(|errno| errno.raw_os_error())
                    .or_else(|| cause.downcast_ref::<std::io::Error>()?.raw_os_error())
            }),
        });
        let went_well = result.is_ok();
        if let Err(error) = self.channel.send(&ToHost::Reply { id, result }) {
            // An answer that cannot be sent, too long for a frame, say, must
            // still be an answer: the host would wait for its deadline.
            let failure = Failure {
                message: format!("{error:#}"),
                errno: None,
            };
            if let Err(error) = self.channel.send(&ToHost::Reply {
                id,
                result: Err(failure),
            }) {
                eprintln!("plugpull-agent: {error:#}");
            }
            return false;
        }
        went_well
    }

    fn carry_out(&self, request: Request) -> Result<Reply> {
        match request {
            Request::Ping => {}
            Request::Mkfs { device, fs, args } => {
                mounts::mkfs(&devices::node(&device)?, &fs, &args)?
            }
            Request::Fsck {
                device,
                fs,
                timeout_ms,
            } => {
                let exited = mounts::fsck(
                    &devices::node(&device)?,
                    &fs,
                    Duration::from_millis(timeout_ms),
                )?;
                return Ok(Reply::Exited(exited));
            }
            Request::Mount {
                device,
                fs,
                options,
                at,
            } => {
                mounts::mount_device(&devices::node(&device)?, &fs, &options, &at)?;
            }
            Request::Serve {
                argv,
                device,
                at,
                timeout_ms,
            } => {
                let argv = devices::fill(argv, &device)?;
                self.servers
                    .start(&argv, &at, Duration::from_millis(timeout_ms))?;
            }
            Request::Unmount { at, timeout_ms } => {
                self.servers
                    .unmount(&at, Duration::from_millis(timeout_ms))?;
            }
            Request::FlushDevice { device } => {
                self.read_ahead.lock().expect("no holder panics").take();
                devices::flush_buffers(&devices::node(&device)?)?;
            }
            Request::ReadAhead {
                device,
                block_bytes,
                stretches,
            } => {
                let node = devices::node(&device)?;
                let held = devices::read_ahead(&node, block_bytes, &stretches)?;
                *self.read_ahead.lock().expect("no holder panics") = Some(held);
            }
            Request::SetWriteCache { device, volatile } => {
                devices::set_write_cache(&devices::node(&device)?, volatile)?;
            }
            Request::WatchSyncs {
                device,
                lower,
                mount,
            } => {
                let write_through = devices::is_write_through(&devices::node(&device)?)?;
                let syncs = Syncs::watch(&lower, &mount)?;
                self.channel.note_syncs(syncs, write_through)?;
            }
            Request::AttachPayload => {
                let disk = devices::by_serial("payload")?;
                devices::flush_buffers(&disk)?;
                mounts::mount_read_only(&disk, "ext4", PAYLOAD)?;
            }
            Request::DmTable {
                name,
                table,
                device,
            } => dm::set_table(&name, &table, &devices::node(&device)?)?,
            Request::DmRemove { name } => dm::remove(&name)?,
            Request::CountErrors { device } => {
                let count = ErrorCount::start(&devices::node(&device)?)?;
                *self.errors.lock().expect("no holder panics") = Some(count);
            }
            Request::CountedErrors => {
                let count = self.errors.lock().expect("no holder panics").take();
                let count = count.context("no errors are being counted")?.stop()?;
                return Ok(Reply::Errors { count });
            }
            Request::Exec {
                argv,
                env,
                uid,
                timeout_ms,
            } => {
                let mut spec = env
                    .iter()
                    .fold(Spec::new(argv), |spec, (name, value)| spec.env(name, value));
                if let Some(uid) = uid {
                    spec = spec.user(uid, uid);
                }
                return Ok(Reply::Exited(spec.run(Duration::from_millis(timeout_ms))?));
            }
            Request::Console {
                term,
                rows,
                columns,
                dir,
            } => return Ok(Reply::Exited(self.console.run(&term, rows, columns, &dir)?)),
            Request::HangUp => self.console.hang_up()?,
            Request::Workload(request) => {
                let env = workload::Env {
                    promises: &self.channel,
                    postgres_bin: PathBuf::from(command_line_word("plugpull.postgres")?),
                    postgres_uid: POSTGRES_UID,
                    postgres_gid: POSTGRES_GID,
                    run_dir: PathBuf::from(POSTGRES_RUN),
                    sound: &self.sound,
                };
                return Ok(Reply::Observed(workload::run(request, &env)?));
            }
            Request::PowerOff => {
                rustix::fs::sync();
                reboot(RebootCommand::PowerOff).context("power off")?;
            }
            Request::Panic => fs::write("/proc/sysrq-trigger", "c").context("crash the kernel")?,
            Request::Hang => hang(),
        }
        Ok(Reply::Done)
    }
}

/// Never return, as a wedged workload would.
fn hang() -> ! {
    loop {
        std::thread::park();
    }
}
