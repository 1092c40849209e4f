//! Device rules as an eBPF program.

use crate::devices::{DeviceKind, DeviceRules};

/// A program for `BPF_PROG_TYPE_CGROUP_DEVICE`: its instructions as the kernel has them in memory.
pub(crate) type Program = Vec<u64>;

// Opcodes of Documentation/bpf/standardization/instruction-set.rst.
const LOAD_32: u8 = 0x61;
const AND_IMM: u8 = 0x57;
const SHIFT_RIGHT_IMM: u8 = 0x77;
const MOVE_IMM: u8 = 0xb7;
const MOVE: u8 = 0xbf;
const JUMP_EQUAL_IMM: u8 = 0x15;
const JUMP_NOT_EQUAL_IMM: u8 = 0x55;
const JUMP_NOT_EQUAL_IMM_32: u8 = 0x56;
const EXIT: u8 = 0x95;

const RESULT: u8 = 0;
const CONTEXT: u8 = 1;
const ACCESS: u8 = 2;
const KIND: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;
const SCRATCH: u8 = 6;

fn instruction(code: u8, to: u8, from: u8, offset: i16, value: i32) -> u64 {
    let [offset_low, offset_high] = offset.to_ne_bytes();
    let [a, b, c, d] = value.to_ne_bytes();
    // The two registers share a byte, as bit fields: the lower half first.
    let registers = if cfg!(target_endian = "little") {
        from << 4 | to
    } else {
        to << 4 | from
    };
    u64::from_ne_bytes([code, registers, offset_low, offset_high, a, b, c, d])
}

/// Compiles the rules. From the last to the first, each rule takes the access that it decides
/// away from what is still undecided; a denial ends it.
pub(crate) fn compile(rules: &DeviceRules) -> Program {
    let load = |to, offset| instruction(LOAD_32, to, CONTEXT, offset, 0);
    let mut program = vec![
        // struct bpf_cgroup_dev_ctx { u32 access_type, major, minor; }, access in the upper half.
        load(ACCESS, 0),
        instruction(MOVE, KIND, ACCESS, 0, 0),
        instruction(AND_IMM, KIND, 0, 0, 0xffff),
        instruction(SHIFT_RIGHT_IMM, ACCESS, 0, 0, 16),
        load(MAJOR, 4),
        load(MINOR, 8),
        // Nothing is asked for.
        instruction(JUMP_NOT_EQUAL_IMM, ACCESS, 0, 2, 0),
        instruction(MOVE_IMM, RESULT, 0, 0, 1),
        instruction(EXIT, 0, 0, 0, 0),
    ];
    for rule in rules.rules().iter().rev() {
        let access = i32::from(rule.access.bits());
        let decide = if rule.allow {
            vec![
                instruction(AND_IMM, ACCESS, 0, 0, !access & 7),
                instruction(JUMP_NOT_EQUAL_IMM, ACCESS, 0, 2, 0),
                instruction(MOVE_IMM, RESULT, 0, 0, 1),
                instruction(EXIT, 0, 0, 0, 0),
            ]
        } else {
            vec![
                instruction(MOVE, SCRATCH, ACCESS, 0, 0),
                instruction(AND_IMM, SCRATCH, 0, 0, access),
                instruction(JUMP_EQUAL_IMM, SCRATCH, 0, 2, 0),
                instruction(MOVE_IMM, RESULT, 0, 0, 0),
                instruction(EXIT, 0, 0, 0, 0),
            ]
        };
        let kind = rule.devices.kind.map(|kind| match kind {
            DeviceKind::Block => 1,
            DeviceKind::Char => 2,
        });
        let tests: Vec<(u8, u32)> = [
            (KIND, kind),
            (MAJOR, rule.devices.major),
            (MINOR, rule.devices.minor),
        ]
        .into_iter()
        .filter_map(|(register, value)| Some((register, value?)))
        .collect();
        for (index, &(register, value)) in tests.iter().enumerate() {
            // Over the remaining tests and the decision; a handful, so it fits.
            let offset = i16::try_from(tests.len() - 1 - index + decide.len()).unwrap_or(i16::MAX);
            let value = value.cast_signed();
            program.push(instruction(
                JUMP_NOT_EQUAL_IMM_32,
                register,
                0,
                offset,
                value,
            ));
        }
        program.extend(decide);
    }
    program.push(instruction(MOVE_IMM, RESULT, 0, 0, 0));
    program.push(instruction(EXIT, 0, 0, 0, 0));
    program
}

#[cfg(test)]
mod properties {
    use proptest::prelude::*;

    use super::*;
    use crate::device::DeviceNumber;
    use crate::devices::Access;
    use crate::devices::tests::{access, rules};

    /// Runs a program as the kernel would.
    fn run(program: &Program, context: [u32; 3]) -> u64 {
        let mut registers = [0_u64; 11];
        let mut at = 0;
        loop {
            let bytes = program[at].to_ne_bytes();
            let (to, from) = (usize::from(bytes[1] & 15), usize::from(bytes[1] >> 4));
            let offset = i16::from_ne_bytes([bytes[2], bytes[3]]);
            let value = i32::from_ne_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
            let extended = i64::from(value).cast_unsigned();
            at += 1;
            let jump = match bytes[0] {
                LOAD_32 => {
                    let index = usize::try_from(offset).expect("in the context") / 4;
                    registers[to] = u64::from(context[index]);
                    false
                }
                AND_IMM => {
                    registers[to] &= extended;
                    false
                }
                SHIFT_RIGHT_IMM => {
                    registers[to] >>= value;
                    false
                }
                MOVE_IMM => {
                    registers[to] = extended;
                    false
                }
                MOVE => {
                    registers[to] = registers[from];
                    false
                }
                JUMP_EQUAL_IMM => registers[to] == extended,
                JUMP_NOT_EQUAL_IMM => registers[to] != extended,
                JUMP_NOT_EQUAL_IMM_32 => {
                    registers[to] & 0xffff_ffff != u64::from(value.cast_unsigned())
                }
                EXIT => return registers[0],
                other => panic!("no such instruction: {other:#x}"),
            };
            if jump {
                at += usize::try_from(offset).expect("forwards");
            }
        }
    }

    proptest! {
        #[test]
        fn the_program_decides_as_the_rules_do(
            rules in rules(),
            block in any::<bool>(),
            (major, minor) in (0..4_u32, 0..4_u32),
            access in access(),
        ) {
            let kind = if block { DeviceKind::Block } else { DeviceKind::Char };
            let number = if block { 1 } else { 2 };
            let context = [u32::from(access.bits()) << 16 | number, major, minor];
            let permitted = rules.permits(kind, DeviceNumber::new(major, minor), access);
            prop_assert_eq!(run(&compile(&rules), context) != 0, permitted);
        }
    }

    #[test]
    fn numbers_beyond_31_bits_are_compared_whole() {
        let number = DeviceNumber::new(u32::MAX, 0x8000_0000);
        let devices = crate::devices::Devices::char(number);
        let rules = DeviceRules::deny_all().allow(devices, Access::READ);
        let program = compile(&rules);
        assert_eq!(run(&program, [2 << 16 | 2, u32::MAX, 0x8000_0000]), 1);
        assert_eq!(run(&program, [2 << 16 | 2, u32::MAX, 0]), 0);
    }
}
