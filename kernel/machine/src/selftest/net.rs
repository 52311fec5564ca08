//! A test of the network device: QEMU's user network answers an ARP request (RFC 826).
use alloc::{format, string::String, vec};

use rt::net::{MAX_FRAME_BYTES, NetDevice};

use super::check;
use crate::{drivers::first_network, time};

/// Ours and the gateway's addresses in QEMU's user network.
const OURS: [u8; 4] = [10, 0, 2, 15];
const GATEWAY: [u8; 4] = [10, 0, 2, 2];
const ROUNDS: usize = 200;
const PATIENCE_NS: u64 = 5_000_000_000;

/// More requests than the queues are long, each with its answer.
pub fn arp() -> Result<(), String> {
    let nic = first_network().ok_or("no network device")?;
    check(nic.link_is_up(), "the link is down")?;
    let mut gateway = None;
    for round in 0..ROUNDS {
        nic.send(&request(nic.mac())).map_err(|error| format!("request {round}: {error:?}"))?;
        let answer = answer(&*nic).map_err(|why| format!("request {round}: {why}"))?;
        check(*gateway.get_or_insert(answer) == answer, "the gateway changed its address")?;
    }
    check(nic.send(&[0; 13]).is_err() && nic.send(&[0; MAX_FRAME_BYTES + 1]).is_err(), "a frame of a wrong length")
}

fn request(mac: [u8; 6]) -> [u8; 60] {
    const ETHERNET_IPV4_REQUEST: [u8; 10] = [8, 6, 0, 1, 8, 0, 6, 4, 0, 1];
    let mut frame = [0; 60];
    frame[..6].fill(0xff);
    frame[6..12].copy_from_slice(&mac);
    frame[12..22].copy_from_slice(&ETHERNET_IPV4_REQUEST);
    frame[22..28].copy_from_slice(&mac);
    frame[28..32].copy_from_slice(&OURS);
    frame[38..42].copy_from_slice(&GATEWAY);
    frame
}

/// The hardware address in the gateway's answer; other frames are passed over.
fn answer(nic: &dyn NetDevice) -> Result<[u8; 6], &'static str> {
    let deadline = time::now_ns() + PATIENCE_NS;
    let mut frame = vec![0; MAX_FRAME_BYTES];
    while time::now_ns() < deadline {
        let Some(len) = nic.receive(&mut frame) else {
            nic.wait_received(Some(deadline));
            continue;
        };
        let is_reply = len >= 42 && frame[12..14] == [8, 6] && frame[20..22] == [0, 2];
        if is_reply && frame[28..32] == GATEWAY && frame[38..42] == OURS && frame[..6] == nic.mac() {
            let mut mac = [0; 6];
            mac.copy_from_slice(&frame[22..28]);
            return Ok(mac);
        }
    }
    Err("no answer")
}
