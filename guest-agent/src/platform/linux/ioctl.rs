//! Four device controls that no crate wraps. The only unsafe code besides the shared frame memory.
#![expect(unsafe_code, reason = "ioctl takes untyped memory; each call states why its type is the kernel's")]

use std::fs::File;
use std::io;
use std::net::Ipv4Addr;

use rustix::ioctl::{NoArg, Setter, Updater, ioctl};
use rustix::net::{AddressFamily, SocketType};

const RNDADDENTROPY: u32 = 0x4008_5203;
const RNDRESEEDCRNG: u32 = 0x5207;
const SIOCGIFCONF: u32 = 0x8912;
const SIOCSIFHWADDR: u32 = 0x8924;
const MAX_INTERFACES: usize = 16;
const ARPHRD_ETHER: u16 = 1;

/// `struct rand_pool_info` with 32 bytes behind it.
#[repr(C)]
struct RandPoolInfo {
    entropy_bits: i32,
    size: i32,
    bytes: [u8; 32],
}

/// `struct ifreq` with a hardware address.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; 16],
    family: u16,
    address: [u8; 14],
    // The kernel's union is 24 bytes long.
    rest: [u8; 8],
}

/// `struct ifreq` with an IPv4 address.
#[repr(C)]
#[derive(Clone, Copy)]
struct InterfaceAddress {
    name: [u8; 16],
    family: u16,
    port: [u8; 2],
    address: [u8; 4],
    // The kernel's union is 24 bytes long.
    rest: [u8; 16],
}

/// `struct ifconf`.
#[repr(C)]
struct InterfaceList {
    len: i32,
    list: *mut InterfaceAddress,
}

pub(super) fn credit_entropy(random: &File, bytes: [u8; 32]) -> io::Result<()> {
    let info = RandPoolInfo { entropy_bits: 256, size: 32, bytes };
    // SAFETY: the kernel reads a rand_pool_info and `size` bytes behind it, which the type holds; it keeps no pointer.
    unsafe { ioctl(random, Setter::<RNDADDENTROPY, RandPoolInfo>::new(info)) }?;
    Ok(())
}

pub(super) fn reseed(random: &File) -> io::Result<()> {
    // SAFETY: this control takes no argument.
    unsafe { ioctl(random, NoArg::<RNDRESEEDCRNG>::new()) }?;
    Ok(())
}

/// IPv4 addresses of the interfaces that are up, with their names.
pub(super) fn ipv4_addresses() -> io::Result<Vec<(String, Ipv4Addr)>> {
    let mut found =
        [InterfaceAddress { name: [0; 16], family: 0, port: [0; 2], address: [0; 4], rest: [0; 16] };
            MAX_INTERFACES];
    let bytes = size_of_val(&found);
    let list = InterfaceList {
        len: i32::try_from(bytes).map_err(|_| io::ErrorKind::InvalidInput)?,
        list: found.as_mut_ptr(),
    };
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    let mut answer = list;
    // SAFETY: the kernel reads and writes one ifconf, which has this layout, and writes at most `len` bytes of ifreqs to
    // `list`, which is that long and outlives the call; it keeps no pointer.
    unsafe { ioctl(&socket, Updater::<SIOCGIFCONF, InterfaceList>::new(&mut answer)) }?;
    let count = usize::try_from(answer.len).unwrap_or(0) / size_of::<InterfaceAddress>();
    Ok(found[..count.min(MAX_INTERFACES)]
        .iter()
        .map(|one| {
            let end = one.name.iter().position(|b| *b == 0).unwrap_or(one.name.len());
            (String::from_utf8_lossy(&one.name[..end]).into_owned(), Ipv4Addr::from(one.address))
        })
        .collect())
}

pub(super) fn set_mac_address(interface: &str, mac: [u8; 6]) -> io::Result<()> {
    let mut request =
        InterfaceRequest { name: [0; 16], family: ARPHRD_ETHER, address: [0; 14], rest: [0; 8] };
    let bytes = interface.as_bytes();
    // The name ends with a zero byte.
    if bytes.len() >= request.name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    request.name[..bytes.len()].copy_from_slice(bytes);
    request.address[..6].copy_from_slice(&mac);
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    // SAFETY: the kernel reads one ifreq, which has this size and layout, and keeps no pointer.
    unsafe { ioctl(&socket, Setter::<SIOCSIFHWADDR, InterfaceRequest>::new(request)) }?;
    Ok(())
}
