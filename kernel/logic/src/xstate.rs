//! Which vector state the kernel keeps, and how large an XSAVE image of it is (SDM volume 1, chapter 13).
//!
//! Images have the standard format, not the compacted one of XSAVEC and XSAVES: a signal frame holds
//! the standard format, and one format serves both. What that costs is memory: 2,688 bytes a thread
//! with AVX-512 on Intel, whose layout keeps the place of a component that nobody uses any more.
use crate::cpuid::Cpuid;

pub const X87: u64 = 1 << 0;
pub const SSE: u64 = 1 << 1;
pub const AVX: u64 = 1 << 2;
/// Mask registers, upper halves of zmm0-15, zmm16-31: only all together.
pub const AVX512: u64 = 7 << 5;
const LEGACY_BYTES: u32 = 512;
const HEADER_BYTES: u32 = 64;
const XSTATE: u32 = 0xd;

/// What to switch on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VectorState {
    /// 0: no XSAVE, so FXSAVE's 512 bytes.
    pub xcr0: u64,
    /// Of an image, as the components' places and sizes say.
    pub image_bytes: u32,
    /// XSAVEOPT is there, which leaves out what has not changed.
    pub xsaveopt: bool,
}

/// As much of x87 to AVX-512 as the CPU has and `most_bytes` of image hold. Protection keys' and AMX's
/// state are left off: their registers cannot be used then.
pub fn vector_state(cpu: &impl Cpuid, most_bytes: u32) -> VectorState {
    let none = VectorState { xcr0: 0, image_bytes: LEGACY_BYTES, xsaveopt: false };
    let [low, _, _, high] = cpu.leaf(XSTATE, 0);
    let offered = u64::from(low) | u64::from(high) << 32;
    if cpu.cpuid(1, 0)[2] & 1 << 26 == 0 || offered & (X87 | SSE) != X87 | SSE {
        return none;
    }
    let mut xcr0 = X87 | SSE;
    // XSETBV refuses AVX-512 without AVX, and a part of it without the others.
    for part in [AVX, AVX512] {
        let fits = || image_bytes(cpu, xcr0 | part).is_some_and(|bytes| bytes <= most_bytes);
        if offered & part != part || !fits() {
            break;
        }
        xcr0 |= part;
    }
    let image_bytes = image_bytes(cpu, xcr0).unwrap_or(LEGACY_BYTES + HEADER_BYTES);
    VectorState { xcr0, image_bytes, xsaveopt: cpu.leaf(XSTATE, 1)[0] & 1 != 0 }
}

/// Bytes of a standard image of these components. None: CPUID does not say where one of them lies.
fn image_bytes(cpu: &impl Cpuid, xcr0: u64) -> Option<u32> {
    let mut end = LEGACY_BYTES + HEADER_BYTES;
    for component in (2..63).filter(|component| xcr0 & 1 << component != 0) {
        let [bytes, offset, ..] = cpu.leaf(XSTATE, component);
        if bytes == 0 || offset < LEGACY_BYTES + HEADER_BYTES {
            return None;
        }
        end = end.max(offset.checked_add(bytes)?);
    }
    Some(end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpuid::fake::FakeCpuid;

    const MOST: u32 = 2752;
    const XSAVE: u32 = 1 << 26;

    fn cpu(features: u32, components: &[(u32, u32, u32)], xsaveopt: bool) -> FakeCpuid {
        let start = FakeCpuid::default().with(1, 0, [0, 0, XSAVE, 0]).with(0xd, 0, [features, 0, 0, 0]);
        let start = start.with(0xd, 1, [u32::from(xsaveopt), 0, 0, 0]);
        components
            .iter()
            .fold(start, |cpu, &(component, bytes, offset)| cpu.with(0xd, component, [bytes, offset, 0, 0]))
    }

    /// Skylake's layout: MPX between AVX and AVX-512, protection keys behind.
    const INTEL: &[(u32, u32, u32)] = &[
        (2, 256, 576),
        (3, 64, 960),
        (4, 64, 1024),
        (5, 64, 1088),
        (6, 512, 1152),
        (7, 1024, 1664),
        (9, 8, 2688),
        (17, 64, 2752),
        (18, 8192, 2816),
    ];
    /// Zen 4's: no MPX.
    const AMD: &[(u32, u32, u32)] = &[(2, 256, 576), (5, 64, 832), (6, 512, 896), (7, 1024, 1408), (9, 8, 2432)];

    #[test]
    fn what_a_cpu_has_is_switched_on() {
        let state = |features, components| {
            let state = vector_state(&cpu(features, components, true), MOST);
            (state.xcr0, state.image_bytes)
        };
        assert_eq!(state(0x3, &[]), (0x3, 576));
        assert_eq!(state(0x7, INTEL), (0x7, 832));
        assert_eq!(state(0xe7, INTEL), (0xe7, 2688));
        assert_eq!(state(0xe7, AMD), (0xe7, 2432));
        // MPX, protection keys and AMX stay off.
        assert_eq!(state(0x602ff, INTEL), (0xe7, 2688));
    }

    #[test]
    fn parts_that_need_each_other_come_together_or_not_at_all() {
        let xcr0 = |features| vector_state(&cpu(features, INTEL, false), MOST).xcr0;
        for part in [0x20, 0x40, 0x80, 0x60, 0xa0, 0xc0] {
            assert_eq!(xcr0(7 | part), 7, "AVX-512 in part: {part:#x}");
        }
        assert_eq!(xcr0(0xe3), 3, "AVX-512 without AVX");
        assert_eq!(xcr0(0x5), 0, "AVX without SSE");
        assert_eq!(xcr0(0), 0);
    }

    #[test]
    fn without_xsave_the_image_is_fxsaves() {
        let none = VectorState { xcr0: 0, image_bytes: 512, xsaveopt: false };
        assert_eq!(vector_state(&FakeCpuid::default().with(1, 0, [0; 4]), MOST), none);
        // The leaf is there, but the feature bit is hidden.
        let hidden = FakeCpuid::default().with(1, 0, [0; 4]).with(0xd, 0, [7, 0, 0, 0]);
        assert_eq!(vector_state(&hidden, MOST), none);
    }

    #[test]
    fn state_that_a_signal_frame_cannot_hold_or_that_has_no_place_stays_off() {
        assert_eq!(vector_state(&cpu(0xe7, INTEL, false), 1024).xcr0, 7);
        assert_eq!(vector_state(&cpu(0x7, INTEL, false), 700).xcr0, 3);
        assert_eq!(vector_state(&cpu(0xe7, &[(2, 256, 576)], false), MOST).xcr0, 7);
        assert_eq!(vector_state(&cpu(0x7, &[(2, 256, 100)], false), MOST).xcr0, 3, "over the header");
        assert_eq!(vector_state(&cpu(0x7, &[(2, u32::MAX, 576)], false), MOST).xcr0, 3);
    }

    #[test]
    fn xsaveopt_is_used_where_it_is() {
        assert!(vector_state(&cpu(7, INTEL, true), MOST).xsaveopt);
        assert!(!vector_state(&cpu(7, INTEL, false), MOST).xsaveopt);
    }
}
