//! The host CPU as an oracle: one instruction at a time, on operands and flags of our choice.

use std::arch::asm;

/// An instruction on `eax`, `edx` and `ecx`, all of which are 32 bits wide.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Instruction {
    pub(crate) name: &'static str,
    /// Without the operand-size prefix that real mode needs.
    pub(crate) code: &'static [u8],
    /// Which of the arithmetic flags it leaves undefined.
    pub(crate) undefined: u64,
    /// Runs it here.
    pub(crate) run: fn(State) -> State,
}

/// What an instruction reads and writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) eax: u32,
    pub(crate) edx: u32,
    pub(crate) ecx: u32,
    pub(crate) flags: u64,
}

pub(crate) const CF: u64 = 1;
pub(crate) const PF: u64 = 1 << 2;
pub(crate) const AF: u64 = 1 << 4;
pub(crate) const ZF: u64 = 1 << 6;
pub(crate) const SF: u64 = 1 << 7;
pub(crate) const OF: u64 = 1 << 11;
/// The arithmetic flags.
pub(crate) const ARITHMETIC: u64 = CF | PF | AF | ZF | SF | OF;

macro_rules! instructions {
    ($($text:literal, [$($byte:literal),*], $undefined:expr;)*) => {
        pub(crate) const INSTRUCTIONS: &[Instruction] = &[$(
            Instruction {
                name: $text,
                code: &[$($byte),*],
                undefined: $undefined,
                run: |s| {
                    let (mut eax, mut edx, ecx) = (s.eax, s.edx, s.ecx);
                    let mut flags = s.flags & ARITHMETIC;
                    // SAFETY: the instruction works on the three registers and the flags alone,
                    // all of which are operands here or clobbered by default; the pushes are
                    // balanced, and no `nomem`/`nostack` is claimed. A division cannot fault: the
                    // caller keeps `edx` below `ecx`.
                    unsafe {
                        asm!(
                            "push {flags}",
                            "popfq",
                            $text,
                            "pushfq",
                            "pop {flags}",
                            flags = inout(reg) flags,
                            inout("eax") eax,
                            inout("edx") edx,
                            in("ecx") ecx,
                        );
                    }
                    State { eax, edx, ecx, flags: flags & ARITHMETIC }
                },
            },
        )*];
    };
}

const NONE: u64 = 0;
const LOGIC: u64 = AF;
/// A shift by zero leaves all flags, others leave AF undefined, and OF is defined for shifts by one.
const SHIFT: u64 = AF | OF;
const ROTATE: u64 = OF;
const MULTIPLY: u64 = PF | AF | ZF | SF;
const DIVIDE: u64 = ARITHMETIC;

instructions! {
    "add eax, ecx", [0x01, 0xc8], NONE;
    "adc eax, ecx", [0x11, 0xc8], NONE;
    "sub eax, ecx", [0x29, 0xc8], NONE;
    "sbb eax, ecx", [0x19, 0xc8], NONE;
    "cmp eax, ecx", [0x39, 0xc8], NONE;
    "and eax, ecx", [0x21, 0xc8], LOGIC;
    "or eax, ecx", [0x09, 0xc8], LOGIC;
    "xor eax, ecx", [0x31, 0xc8], LOGIC;
    "test eax, ecx", [0x85, 0xc8], LOGIC;
    "neg eax", [0xf7, 0xd8], NONE;
    "not eax", [0xf7, 0xd0], NONE;
    "inc eax", [0xff, 0xc0], NONE;
    "dec eax", [0xff, 0xc8], NONE;
    "shl eax, cl", [0xd3, 0xe0], SHIFT;
    "shr eax, cl", [0xd3, 0xe8], SHIFT;
    "sar eax, cl", [0xd3, 0xf8], SHIFT;
    "rol eax, cl", [0xd3, 0xc0], ROTATE;
    "ror eax, cl", [0xd3, 0xc8], ROTATE;
    "rcl eax, cl", [0xd3, 0xd0], ROTATE;
    "rcr eax, cl", [0xd3, 0xd8], ROTATE;
    "shld eax, edx, cl", [0x0f, 0xa5, 0xd0], SHIFT;
    "shrd eax, edx, cl", [0x0f, 0xad, 0xd0], SHIFT;
    "mul ecx", [0xf7, 0xe1], MULTIPLY;
    "imul ecx", [0xf7, 0xe9], MULTIPLY;
    "imul eax, ecx", [0x0f, 0xaf, 0xc1], MULTIPLY;
    "div ecx", [0xf7, 0xf1], DIVIDE;
    "idiv ecx", [0xf7, 0xf9], DIVIDE;
    "bswap eax", [0x0f, 0xc8], NONE;
    "bt eax, ecx", [0x0f, 0xa3, 0xc8], PF | AF | SF | OF;
    "xchg eax, edx", [0x87, 0xd0], NONE;
    "cmovc eax, edx", [0x0f, 0x42, 0xc2], NONE;
}
