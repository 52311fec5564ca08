//! A device of the other side's making: it reads the rings as the specification says, and the tests
//! answer for it, truthfully or not.
use std::{cell::RefCell, rc::Rc};

use super::{
    Dma, VirtioError,
    transport::{QueueAddresses, Transport},
};

const BASE: u64 = 0x10_0000;
const MEMORY: usize = 0x10_0000;

/// Physical memory of the fake machine; areas are parts of it.
#[derive(Clone)]
pub struct Ram(Rc<RefCell<Vec<u8>>>);

impl Ram {
    pub fn get<const N: usize>(&self, address: u64) -> [u8; N] {
        let at = (address - BASE) as usize;
        self.0.borrow()[at..at + N].try_into().unwrap()
    }

    pub fn put(&self, address: u64, data: &[u8]) {
        let at = (address - BASE) as usize;
        self.0.borrow_mut()[at..at + data.len()].copy_from_slice(data);
    }

    pub fn u16(&self, address: u64) -> u16 {
        u16::from_le_bytes(self.get(address))
    }

    pub fn u32(&self, address: u64) -> u32 {
        u32::from_le_bytes(self.get(address))
    }

    pub fn u64(&self, address: u64) -> u64 {
        u64::from_le_bytes(self.get(address))
    }
}

pub struct Area {
    ram: Ram,
    start: u64,
    len: usize,
}

impl Area {
    fn at(&self, offset: usize, len: usize) -> u64 {
        assert!(offset + len <= self.len);
        self.start + offset as u64
    }
}

impl Dma for Area {
    fn physical(&self) -> u64 {
        self.start
    }
    fn len_bytes(&self) -> usize {
        self.len
    }
    fn load8(&self, offset: usize) -> u8 {
        self.ram.get::<1>(self.at(offset, 1))[0]
    }
    fn load16(&self, offset: usize) -> u16 {
        self.ram.u16(self.at(offset, 2))
    }
    fn load32(&self, offset: usize) -> u32 {
        self.ram.u32(self.at(offset, 4))
    }
    fn store8(&self, offset: usize, value: u8) {
        self.ram.put(self.at(offset, 1), &[value]);
    }
    fn store16(&self, offset: usize, value: u16) {
        self.ram.put(self.at(offset, 2), &value.to_le_bytes());
    }
    fn store32(&self, offset: usize, value: u32) {
        self.ram.put(self.at(offset, 4), &value.to_le_bytes());
    }
    fn store64(&self, offset: usize, value: u64) {
        self.ram.put(self.at(offset, 8), &value.to_le_bytes());
    }
}

/// The other side of one virtqueue.
#[derive(Default)]
struct Ring {
    /// What the device offers.
    most: u16,
    size: u16,
    addresses: Option<QueueAddresses>,
    notified: u32,
    seen: u16,
    used: u16,
}

struct State {
    features: u64,
    accepted: u64,
    status: u8,
    rings: Vec<Ring>,
    config: Vec<u8>,
    generation: u32,
    /// Takes no reset.
    stuck: bool,
    /// How often the status was looked at.
    looks: std::cell::Cell<u32>,
}

/// A machine's memory, handed out to drivers from the start.
pub struct Machine {
    ram: Ram,
    next: Rc<RefCell<u64>>,
}

impl Machine {
    pub fn new() -> Self {
        Self { ram: Ram(Rc::new(RefCell::new(vec![0; MEMORY]))), next: Rc::new(RefCell::new(BASE)) }
    }

    pub fn allocator(&self) -> impl FnMut(usize) -> Option<Area> + use<> {
        let (ram, next) = (self.ram.clone(), self.next.clone());
        move |len| {
            let start = *next.borrow();
            *next.borrow_mut() += len.next_multiple_of(4096) as u64;
            Some(Area { ram: ram.clone(), start, len })
        }
    }

    /// The first address that was not handed out.
    pub fn free_from(&self) -> u64 {
        *self.next.borrow()
    }

    /// A device with queues of these sizes.
    pub fn device(&self, kind: u32, features: u64, sizes: &[u16], config: &[u8]) -> Device {
        let rings = sizes.iter().map(|size| Ring { size: *size, most: *size, ..Ring::default() }).collect();
        let features = features | super::feature::VERSION_1;
        let config = config.to_vec();
        let state = State {
            features,
            accepted: 0,
            status: 0,
            rings,
            config,
            generation: 0,
            stuck: false,
            looks: std::cell::Cell::new(0),
        };
        Device { kind, state: Rc::new(RefCell::new(state)), ram: self.ram.clone() }
    }
}

/// The device; the driver holds a clone as its transport.
#[derive(Clone)]
pub struct Device {
    kind: u32,
    state: Rc<RefCell<State>>,
    pub ram: Ram,
}

impl Transport for Device {
    fn device_type(&self) -> u32 {
        self.kind
    }
    fn is_legacy(&self) -> bool {
        false
    }
    fn status(&self) -> u8 {
        let state = self.state.borrow();
        state.looks.set(state.looks.get() + 1);
        state.status
    }
    fn set_status(&mut self, status: u8) {
        let mut state = self.state.borrow_mut();
        if state.stuck {
            return;
        }
        state.status = status;
        if status == 0 {
            // A reset forgets the queues.
            for ring in &mut state.rings {
                *ring = Ring { size: ring.most, most: ring.most, notified: ring.notified, ..Ring::default() };
            }
        }
    }
    fn offered_features(&mut self) -> u64 {
        self.state.borrow().features
    }
    fn accept_features(&mut self, features: u64) {
        self.state.borrow_mut().accepted = features;
    }
    fn max_queue_size(&mut self, queue: u16) -> u16 {
        self.state.borrow().rings.get(usize::from(queue)).map_or(0, |ring| ring.most)
    }
    fn set_queue(
        &mut self,
        queue: u16,
        size: u16,
        addresses: QueueAddresses,
        _: Option<u16>,
    ) -> Result<(), VirtioError> {
        let ring = &mut self.state.borrow_mut().rings[usize::from(queue)];
        ring.size = size;
        ring.addresses = Some(addresses);
        Ok(())
    }
    fn notify(&mut self, queue: u16) {
        self.state.borrow_mut().rings[usize::from(queue)].notified += 1;
    }
    fn config32(&self, offset: u32) -> u32 {
        let state = self.state.borrow();
        let bytes = state.config.get(offset as usize..).unwrap_or(&[]);
        (0..4).fold(0, |word, n| word | u32::from(bytes.get(n).copied().unwrap_or(0)) << (8 * n))
    }
    fn set_config32(&mut self, offset: u32, value: u32) {
        self.configure(offset, value);
    }
    fn config_generation(&self) -> u32 {
        self.state.borrow().generation
    }
}

impl Device {
    /// Changes a field of the configuration.
    pub fn configure(&self, offset: u32, value: u32) {
        let mut state = self.state.borrow_mut();
        state.generation += 1;
        let end = offset as usize + 4;
        if state.config.len() < end {
            state.config.resize(end, 0);
        }
        state.config[offset as usize..end].copy_from_slice(&value.to_le_bytes());
    }

    /// From now on offers these features.
    pub fn offer(&self, features: u64) {
        self.state.borrow_mut().features = features | super::feature::VERSION_1;
    }

    /// From now on takes no reset.
    pub fn get_stuck(&self) {
        self.state.borrow_mut().stuck = true;
    }

    /// As Firecracker's devices without a reset: every one is answered by FAILED.
    pub fn fail(&self) {
        let mut state = self.state.borrow_mut();
        (state.stuck, state.status) = (true, 128);
        state.looks.set(0);
    }

    /// How often the status was looked at since.
    pub fn looks(&self) -> u32 {
        self.state.borrow().looks.get()
    }

    /// How often the driver rang.
    pub fn notified(&self, queue: u16) -> u32 {
        self.state.borrow().rings[usize::from(queue)].notified
    }

    pub fn accepted(&self) -> u64 {
        self.state.borrow().accepted
    }

    /// Heads of the chains that are new in the available ring.
    pub fn take(&self, queue: u16) -> Vec<u16> {
        let ring = &mut self.state.borrow_mut().rings[usize::from(queue)];
        let available = ring.addresses.unwrap().available;
        let mut heads = Vec::new();
        while ring.seen != self.ram.u16(available + 2) {
            heads.push(self.ram.u16(available + 4 + 2 * u64::from(ring.seen % ring.size)));
            ring.seen = ring.seen.wrapping_add(1);
        }
        heads
    }

    pub fn is_set_up(&self, queue: u16) -> bool {
        self.state.borrow().rings.get(usize::from(queue)).is_some_and(|ring| ring.addresses.is_some())
    }

    /// Claims to have used so many chains more, whatever stands in the ring.
    pub fn jump(&self, queue: u16, by: u16) {
        let ring = &mut self.state.borrow_mut().rings[usize::from(queue)];
        ring.used = ring.used.wrapping_add(by);
        self.ram.put(ring.addresses.unwrap().used + 2, &ring.used.to_le_bytes());
    }

    /// Says that the chain `id` is done.
    pub fn answer(&self, queue: u16, id: u32, written: u32) {
        let ring = &mut self.state.borrow_mut().rings[usize::from(queue)];
        let used = ring.addresses.unwrap().used;
        let entry = used + 4 + 8 * u64::from(ring.used % ring.size);
        self.ram.put(entry, &[id, written].map(u32::to_le_bytes).concat());
        ring.used = ring.used.wrapping_add(1);
        self.ram.put(used + 2, &ring.used.to_le_bytes());
    }

    /// A chain's segments: (address, length, the device writes).
    pub fn chain(&self, queue: u16, head: u16) -> Vec<(u64, u32, bool)> {
        let table = self.state.borrow().rings[usize::from(queue)].addresses.unwrap().descriptors;
        self.segments(table, head)
    }

    fn segments(&self, table: u64, head: u16) -> Vec<(u64, u32, bool)> {
        let mut chain = Vec::new();
        let mut index = head;
        loop {
            let at = table + 16 * u64::from(index);
            let (address, len, flags) = (self.ram.u64(at), self.ram.u32(at + 8), self.ram.u16(at + 12));
            if flags & 4 != 0 {
                return self.segments(address, 0);
            }
            chain.push((address, len, flags & 2 != 0));
            if flags & 1 == 0 {
                return chain;
            }
            index = self.ram.u16(at + 14);
        }
    }
}
