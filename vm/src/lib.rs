//! Guest images, accelerator probe, QEMU, templates and clones, guest channel, console watch.
