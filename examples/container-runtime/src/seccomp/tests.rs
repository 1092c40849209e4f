//! The programs beside what the profiles say, evaluated one rule after the other.

use proptest::prelude::*;

use super::bpf::{self, AND, Instruction, JA, JEQ, JGE, JGT, LD, RET};
use super::*;

/// `struct seccomp_data`.
struct Call {
    number: u32,
    audit: u32,
    arguments: [u64; 6],
}

/// What the kernel's interpreter makes of it.
fn interpret(program: &[Instruction], call: &Call) -> u32 {
    let mut data = Vec::new();
    data.extend(call.number.to_le_bytes());
    data.extend(call.audit.to_le_bytes());
    data.extend([0; 8]);
    let big = call.audit & 0x4000_0000 == 0;
    for argument in call.arguments {
        data.extend(if big {
            // The halves are swapped; each is loaded in this machine's order.
            argument.rotate_left(32).to_le_bytes()
        } else {
            argument.to_le_bytes()
        });
    }
    let (mut at, mut a) = (0, 0_u32);
    loop {
        let Instruction { code, jt, jf, k } = program[at];
        let jump = |holds: bool| usize::from(if holds { jt } else { jf });
        at += 1;
        match code {
            LD => a = u32::from_le_bytes(data[k as usize..][..4].try_into().unwrap()),
            AND => a &= k,
            JA => at += k as usize,
            JEQ => at += jump(a == k),
            JGT => at += jump(a > k),
            JGE => at += jump(a >= k),
            RET => return k,
            other => panic!("{other:#x}"),
        }
    }
}

fn holds(condition: &Condition, call: &Call, wide: bool) -> bool {
    let cut = |value: u64| if wide { value } else { value & 0xffff_ffff };
    let argument = cut(call.arguments[condition.argument as usize]);
    let value = cut(condition.value);
    match condition.compare {
        Compare::Equal => argument == value,
        Compare::NotEqual => argument != value,
        Compare::Less => argument < value,
        Compare::LessOrEqual => argument <= value,
        Compare::Greater => argument > value,
        Compare::GreaterOrEqual => argument >= value,
        Compare::MaskedEqual { mask } => argument & cut(mask) == value & cut(mask),
    }
}

/// What the rules say, without any program.
fn evaluate(blocks: &[bpf::Block], call: &Call) -> u32 {
    let x86_64 = call.audit == 0xc000_003e;
    let is_x32 = x86_64 && call.number >= arch::X32_BIT;
    let block = blocks
        .iter()
        .find(|block| block.arch.audit == call.audit && block.arch.is_x32() == is_x32);
    let Some(block) = block else {
        return Action::KILL_THREAD.0;
    };
    let rules = block.rules.get(&call.number).map_or(&[][..], Vec::as_slice);
    for rule in rules {
        if rule
            .conditions
            .iter()
            .all(|condition| holds(condition, call, block.arch.wide))
        {
            return rule.action.0;
        }
    }
    match block.newer {
        Some((from, action)) if call.number >= from && rules.is_empty() => action.0,
        _ => block.default.0,
    }
}

fn compare() -> impl Strategy<Value = Compare> {
    prop_oneof![
        Just(Compare::Equal),
        Just(Compare::NotEqual),
        Just(Compare::Less),
        Just(Compare::LessOrEqual),
        Just(Compare::Greater),
        Just(Compare::GreaterOrEqual),
        value().prop_map(|mask| Compare::MaskedEqual { mask }),
    ]
}

/// Few values, so that arguments and conditions meet, and their neighbours.
fn value() -> impl Strategy<Value = u64> {
    prop_oneof![
        0_u64..4,
        Just(0xffff_ffff),
        0x1_0000_0000_u64..0x1_0000_0003,
        Just(u64::MAX),
        any::<u64>(),
    ]
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        Just(Action::ALLOW),
        Just(Action::KILL_PROCESS),
        Just(Action::TRAP),
        (0_u32..5).prop_map(Action::errno),
    ]
}

fn rule() -> impl Strategy<Value = Rule> {
    let condition =
        (0_u32..6, compare(), value()).prop_map(|(argument, compare, value)| Condition {
            argument,
            compare,
            value,
        });
    (proptest::collection::vec(condition, 0..4), action())
        .prop_map(|(conditions, action)| Rule { conditions, action })
}

fn block(arch: Arch) -> impl Strategy<Value = bpf::Block> {
    let base = if arch.is_x32() { arch::X32_BIT } else { 0 };
    let rules = proptest::collection::btree_map(
        (0_u32..500).prop_map(move |number| number | base),
        proptest::collection::vec(rule(), 1..4),
        0..300,
    );
    (rules, action(), any::<bool>()).prop_map(move |(rules, default, newer)| bpf::Block {
        arch,
        default,
        newer: newer.then_some((base + 500, Action::errno(ENOSYS))),
        rules,
    })
}

fn blocks() -> impl Strategy<Value = Vec<bpf::Block>> {
    proptest::sample::subsequence(arch::ALL.to_vec(), 1..4)
        .prop_flat_map(|archs| archs.into_iter().map(block).collect::<Vec<_>>())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(64), ..ProptestConfig::default() })]

    #[test]
    fn programs_decide_as_the_rules_say(
        blocks in blocks(),
        calls in proptest::collection::vec(
            (0_usize..15, prop_oneof![0_u32..520, any::<u32>()], any::<bool>(), proptest::array::uniform6(value())),
            1..100,
        ),
    ) {
        let program = bpf::instructions(&blocks);
        for (arch, number, x32, arguments) in calls {
            let number = if x32 { number | arch::X32_BIT } else { number };
            let call = Call { number, audit: arch::ALL[arch].audit, arguments };
            prop_assert_eq!(interpret(&program, &call), evaluate(&blocks, &call));
        }
    }
}

fn profile(json: &str) -> Result<Option<Filter>> {
    filter(&serde_json::from_str(json).unwrap())
}

fn error(json: &str) -> String {
    profile(json).unwrap_err().to_string()
}

#[test]
fn what_is_wrong_is_named() {
    for (json, place) in [
        (r#"{"defaultAction": "SCMP_ACT_X"}"#, "defaultAction"),
        (
            r#"{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_VAX"]}"#,
            "architectures[0]",
        ),
        (
            r#"{"defaultAction": "SCMP_ACT_ALLOW", "flags": ["X"]}"#,
            "flags[0]",
        ),
        (
            r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": [], "action": "SCMP_ACT_ERRNO"}]}"#,
            "syscalls[0].names",
        ),
        (
            r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}]}]}"#,
            "syscalls[0].args[0].index",
        ),
        (
            r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_NOTIFY"}]}"#,
            "listenerPath",
        ),
        (
            r#"{"defaultAction": "SCMP_ACT_ALLOW", "defaultErrnoRet": 1}"#,
            "defaultAction",
        ),
        (
            r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_KILL", "errnoRet": 5}]}"#,
            "syscalls[0].action",
        ),
        (
            r#"{"defaultAction": "SCMP_ACT_ALLOW", "listenerMetadata": "x"}"#,
            "listenerMetadata",
        ),
    ] {
        let message = error(json);
        assert!(
            message.starts_with(&format!("linux.seccomp.{place}: ")),
            "{message}"
        );
    }
}

#[test]
fn one_that_allows_everything_is_none() {
    assert!(
        profile(r#"{"defaultAction": "SCMP_ACT_ALLOW"}"#)
            .unwrap()
            .is_none()
    );
}

#[test]
fn newer_calls_are_unknown_rather_than_forbidden() {
    let json = r#"{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": ["read", "exit"], "action": "SCMP_ACT_ALLOW"}]}"#;
    let seccomp: Seccomp = serde_json::from_str(json).unwrap();
    let rules = rules_of(&seccomp.syscalls[0], "").unwrap();
    let native = arch::native();
    let program = bpf::instructions(&[super::block(&native, Action::errno(1), &rules)]);
    let decide = |name: &str| {
        let call = Call {
            number: native.number(name).unwrap(),
            audit: native.audit,
            arguments: [0; 6],
        };
        Action(interpret(&program, &call))
    };
    assert_eq!(decide("read"), Action::ALLOW);
    assert_eq!(decide("write"), Action::errno(1));
    assert_eq!(decide("clone3"), Action::errno(ENOSYS));
}
