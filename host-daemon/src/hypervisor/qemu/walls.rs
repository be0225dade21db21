//! The packet filter between a guest and the user-mode network stack, as a classic BPF program.
//!
//! It judges whole Ethernet frames. Loads beyond a frame's end drop the frame. The stack puts fragments together by their
//! target address, so each fragment is judged by the address that counts; where ports count, fragments do not pass.

use std::net::Ipv4Addr;

use socket2::SockFilter;

/// Addresses of the stack, in a /24 of its own.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Addresses {
    /// Its network.
    pub(crate) subnet: Ipv4Addr,
    /// Its gateway and DHCP server.
    pub(crate) gateway: Ipv4Addr,
    /// Its DNS forwarder.
    pub(crate) resolver: Ipv4Addr,
}

/// Where a test leads. Only forward, as the kernel demands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum To {
    Next,
    Dhcp,
    Dns,
    DnsPort,
    Pass,
    Drop,
}

#[derive(Debug, Clone, Copy)]
enum Step {
    /// Into the accumulator, or the index register.
    Load(u16, u32),
    /// The accumulator's bits under a mask.
    Mask(u32),
    Test(u16, u32, To, To),
    Label(To),
    Return(u32),
}

/// Loads: a byte, a half word, a word; a half word behind the IPv4 header; the header's length into the index register.
const BYTE: u16 = 0x30;
const HALF: u16 = 0x28;
const WORD: u16 = 0x20;
const HALF_BEHIND: u16 = 0x48;
const HEADER_LENGTH: u16 = 0xb1;
/// Tests of the accumulator.
const EQUALS: u16 = 0x15;
const AT_LEAST: u16 = 0x35;
const HAS_BITS: u16 = 0x45;
const AND: u16 = 0x54;
const RETURN: u16 = 0x06;

/// Where things are in an Ethernet frame that carries IPv4.
const FRAME_TYPE: u32 = 12;
const IP: u32 = 14;
const FRAGMENT: u32 = IP + 6;
const PROTOCOL: u32 = IP + 9;
const TARGET: u32 = IP + 16;
const TARGET_PORT_BEHIND: u32 = IP + 2;

const ARP: u32 = 0x0806;
const IPV4: u32 = 0x0800;
const TCP: u32 = 6;
const UDP: u32 = 17;
/// More fragments, or not the first.
const IS_FRAGMENT: u32 = 0x3fff;

fn steps(addresses: &Addresses) -> Vec<Step> {
    use Step::{Label, Load, Mask, Return, Test};
    use To::{Dhcp, Dns, DnsPort, Drop, Next, Pass};
    let bits = |address: Ipv4Addr| u32::from(address);
    vec![
        Load(HALF, FRAME_TYPE),
        Test(EQUALS, ARP, Pass, Next),
        Test(EQUALS, IPV4, Next, Drop),
        Load(WORD, TARGET),
        Test(EQUALS, bits(Ipv4Addr::BROADCAST), Dhcp, Next),
        Test(EQUALS, bits(addresses.gateway), Dhcp, Next),
        Test(EQUALS, bits(addresses.resolver), Dns, Next),
        // Multicast and reserved.
        Test(AT_LEAST, 0xe000_0000, Drop, Next),
        Mask(0xffff_ff00),
        Test(EQUALS, bits(addresses.subnet), Drop, Next),
        // Link-local, where clouds keep their secrets.
        Mask(0xffff_0000),
        Test(EQUALS, bits(Ipv4Addr::new(169, 254, 0, 0)), Drop, Next),
        // 0.0.0.0/8 and 127.0.0.0/8 are the host itself.
        Mask(0xff00_0000),
        Test(EQUALS, 0, Drop, Next),
        Test(EQUALS, bits(Ipv4Addr::new(127, 0, 0, 0)), Drop, Pass),
        Label(Dhcp),
        Load(BYTE, PROTOCOL),
        Test(EQUALS, UDP, Next, Drop),
        Load(HALF, FRAGMENT),
        Test(HAS_BITS, IS_FRAGMENT, Drop, Next),
        Load(HEADER_LENGTH, IP),
        Load(HALF_BEHIND, TARGET_PORT_BEHIND),
        Test(EQUALS, 67, Pass, Drop),
        Label(Dns),
        Load(HALF, FRAGMENT),
        Test(HAS_BITS, IS_FRAGMENT, Drop, Next),
        Load(BYTE, PROTOCOL),
        Test(EQUALS, UDP, DnsPort, Next),
        Test(EQUALS, TCP, Next, Drop),
        Label(DnsPort),
        Load(HEADER_LENGTH, IP),
        Load(HALF_BEHIND, TARGET_PORT_BEHIND),
        Test(EQUALS, 53, Pass, Drop),
        Label(Drop),
        Return(0),
        Label(Pass),
        Return(u32::MAX),
    ]
}

/// The program, ready for the kernel.
pub(crate) fn filter(addresses: &Addresses) -> Vec<SockFilter> {
    let steps = steps(addresses);
    let is_code = |step: &&Step| !matches!(step, Step::Label(_));
    // How many instructions lie between the test at `at` and its target; 255 is the most a test can skip.
    let skip = |at: usize, to: To| -> u8 {
        let target = match to {
            To::Next => return 0,
            to => steps.iter().position(|step| matches!(step, Step::Label(label) if *label == to)),
        };
        let between = target.map_or(0, |target| steps[at + 1..target].iter().filter(is_code).count());
        u8::try_from(between).unwrap_or(u8::MAX)
    };
    let code = |(at, step): (usize, &Step)| match *step {
        Step::Load(code, k) => Some(SockFilter::new(code, 0, 0, k)),
        Step::Mask(k) => Some(SockFilter::new(AND, 0, 0, k)),
        Step::Test(code, k, yes, no) => Some(SockFilter::new(code, skip(at, yes), skip(at, no), k)),
        Step::Return(k) => Some(SockFilter::new(RETURN, 0, 0, k)),
        Step::Label(_) => None,
    };
    steps.iter().enumerate().filter_map(code).collect()
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use socket2::{Domain, Socket, Type};

    use super::*;

    const ADDRESSES: Addresses = Addresses {
        subnet: Ipv4Addr::new(10, 0, 2, 0),
        gateway: Ipv4Addr::new(10, 0, 2, 2),
        resolver: Ipv4Addr::new(10, 0, 2, 3),
    };

    /// What the kernel lets through: the real filter on a real socket.
    fn passes(frame: &[u8]) -> bool {
        let (mut guest, mut stack) = Socket::pair(Domain::UNIX, Type::DGRAM, None).expect("pair");
        stack.attach_filter(&filter(&ADDRESSES)).expect("attach");
        stack.set_nonblocking(true).expect("nonblocking");
        assert_eq!(guest.write(frame).expect("write"), frame.len());
        match stack.read(&mut [0; 2048]) {
            Ok(length) => {
                assert_eq!(length, frame.len(), "cut");
                true
            }
            Err(error) => {
                assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
                false
            }
        }
    }

    struct Packet {
        target: [u8; 4],
        protocol: u8,
        port: u16,
        fragment: u16,
        options: usize,
    }

    fn to(target: [u8; 4]) -> Packet {
        Packet { target, protocol: 6, port: 80, fragment: 0x4000, options: 0 }
    }

    impl Packet {
        fn frame(&self) -> Vec<u8> {
            let mut frame = vec![0x52; 12];
            frame.extend([0x08, 0x00, 0x45 + u8::try_from(self.options).expect("few"), 0, 0, 60, 0, 1]);
            frame.extend(self.fragment.to_be_bytes());
            frame.extend([64, self.protocol, 0, 0, 10, 0, 2, 15]);
            frame.extend(self.target);
            frame.extend(vec![0; self.options * 4]);
            frame.extend([0x99, 0x99]);
            frame.extend(self.port.to_be_bytes());
            frame.extend([0; 16]);
            frame
        }

        fn passes(&self) -> bool {
            passes(&self.frame())
        }
    }

    #[test]
    fn the_world_is_open() {
        for target in
            [[93, 184, 216, 34], [192, 168, 1, 1], [10, 0, 3, 1], [1, 0, 0, 1], [223, 255, 255, 255]]
        {
            assert!(to(target).passes(), "{target:?}");
            assert!(Packet { fragment: 0x2000, ..to(target) }.passes(), "fragment to {target:?}");
        }
        assert!(passes(&[&[0xff; 12][..], &[0x08, 0x06], &[0; 28]].concat()), "ARP");
    }

    #[test]
    fn the_host_and_its_surroundings_are_closed() {
        for target in [
            [127, 0, 0, 1],
            [127, 255, 255, 254],
            [0, 0, 0, 0],
            [0, 0, 0, 1],
            [10, 0, 2, 2],
            [10, 0, 2, 4],
            [10, 0, 2, 255],
            [169, 254, 169, 254],
            [224, 0, 0, 251],
            [240, 0, 0, 1],
            [255, 255, 255, 255],
        ] {
            for protocol in [1, 6, 17] {
                for options in [0, 10] {
                    let packet = Packet { protocol, options, ..to(target) };
                    assert!(!packet.passes(), "{target:?} by {protocol}");
                }
            }
        }
        assert!(!passes(&[&[0x52; 12][..], &[0x86, 0xdd], &[0; 60]].concat()), "IPv6");
        assert!(!passes(&[&[0x52; 12][..], &[0x81, 0x00, 0, 1, 8, 0], &[0; 60]].concat()), "VLAN");
        assert!(!passes(&[0x52; 13]), "too short for a type");
        assert!(!passes(&to([127, 0, 0, 1]).frame()[..32]), "too short for a target");
    }

    #[test]
    fn names_and_addresses_are_served_whole_and_on_their_ports_only() {
        let dns = |protocol, port| Packet { protocol, port, ..to([10, 0, 2, 3]) };
        assert!(dns(17, 53).passes() && dns(6, 53).passes());
        assert!(Packet { options: 3, ..dns(17, 53) }.passes(), "behind options");
        for (protocol, port) in [(6, 7777), (17, 123), (1, 53)] {
            assert!(!dns(protocol, port).passes(), "{protocol} {port}");
        }
        assert!(!Packet { fragment: 0x2000, ..dns(17, 53) }.passes(), "first fragment");
        assert!(!Packet { fragment: 0x0001, ..dns(17, 53) }.passes(), "later fragment");
        for target in [[255, 255, 255, 255], [10, 0, 2, 2]] {
            let dhcp = |protocol, port| Packet { protocol, port, ..to(target) };
            assert!(dhcp(17, 67).passes());
            assert!(!dhcp(17, 68).passes() && !dhcp(6, 67).passes());
            assert!(!Packet { fragment: 1, ..dhcp(17, 67) }.passes());
        }
    }
}
