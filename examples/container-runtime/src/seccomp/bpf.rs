//! Classic BPF programs from rules.
//!
//! A program looks at the architecture first, then searches the number of the system call in a
//! tree of ranges: neighbours that are treated alike are one range, so that a profile of some 400
//! names takes some seven comparisons, and a few hundred instructions.
//!
//! Every piece of code here ends in a return, and jumps forward within itself only, so that pieces
//! can be put one after the other.

use std::collections::BTreeMap;

use super::arch::{Arch, X32_BIT};

/// What the kernel does: `SECCOMP_RET_…`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Action(pub(crate) u32);

impl Action {
    pub(crate) const KILL_PROCESS: Self = Self(0x8000_0000);
    pub(crate) const KILL_THREAD: Self = Self(0);
    pub(crate) const TRAP: Self = Self(0x0003_0000);
    pub(crate) const NOTIFY: Self = Self(0x7fc0_0000);
    pub(crate) const LOG: Self = Self(0x7ffc_0000);
    pub(crate) const ALLOW: Self = Self(0x7fff_0000);

    pub(crate) const fn errno(errno: u32) -> Self {
        Self(0x0005_0000 | errno)
    }

    pub(crate) const fn trace(value: u32) -> Self {
        Self(0x7ff0_0000 | value)
    }

    /// Whether the call is not made, and the program told so.
    pub(crate) fn is_refusal(self) -> bool {
        self.0 & 0xffff_0000 == 0x0005_0000
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compare {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    MaskedEqual { mask: u64 },
}

/// A condition on an argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Condition {
    /// From 0 to 5.
    pub(crate) argument: u32,
    pub(crate) compare: Compare,
    pub(crate) value: u64,
}

/// What happens to a call when all conditions hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rule {
    pub(crate) conditions: Vec<Condition>,
    pub(crate) action: Action,
}

/// The rules of one architecture.
#[derive(Debug)]
pub(crate) struct Block {
    pub(crate) arch: Arch,
    pub(crate) default: Action,
    /// From this number on, the default is another.
    pub(crate) newer: Option<(u32, Action)>,
    pub(crate) rules: BTreeMap<u32, Vec<Rule>>,
}

/// `struct sock_filter`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Instruction {
    pub(crate) code: u16,
    pub(crate) jt: u8,
    pub(crate) jf: u8,
    pub(crate) k: u32,
}

/// Loads a word of `struct seccomp_data`.
pub(crate) const LD: u16 = 0x20;
pub(crate) const AND: u16 = 0x54;
pub(crate) const JA: u16 = 0x05;
pub(crate) const JEQ: u16 = 0x15;
pub(crate) const JGT: u16 = 0x25;
pub(crate) const JGE: u16 = 0x35;
pub(crate) const RET: u16 = 0x06;

const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const ARGUMENTS: u32 = 16;

const fn plain(code: u16, k: u32) -> Instruction {
    Instruction {
        code,
        jt: 0,
        jf: 0,
        k,
    }
}

type Code = Vec<Instruction>;

fn returns(action: Action) -> Code {
    vec![plain(RET, action.0)]
}

/// The program of all architectures, as bytes of an array of `struct sock_filter`.
pub(crate) fn program(blocks: &[Block]) -> Vec<u8> {
    instructions(blocks)
        .iter()
        .flat_map(|instruction| {
            let mut bytes = [0; 8];
            let [c0, c1] = instruction.code.to_ne_bytes();
            let [k0, k1, k2, k3] = instruction.k.to_ne_bytes();
            bytes.copy_from_slice(&[c0, c1, instruction.jt, instruction.jf, k0, k1, k2, k3]);
            bytes
        })
        .collect()
}

pub(crate) fn instructions(blocks: &[Block]) -> Code {
    let mut code = vec![plain(LD, ARCH)];
    // x32 is told from x86-64 by the number alone.
    let x32 = blocks.iter().find(|block| block.arch.is_x32());
    let mut seen = Vec::new();
    for block in blocks {
        let audit = block.arch.audit;
        if seen.contains(&audit) {
            continue;
        }
        seen.push(audit);
        let wide = blocks
            .iter()
            .find(|other| other.arch.audit == audit && !other.arch.is_x32());
        let mut body = vec![plain(LD, NUMBER)];
        if audit == super::arch::ALL[14].audit {
            let kill = returns(Action::KILL_THREAD);
            let high = x32.map_or_else(|| kill.clone(), search);
            let low = wide.map_or(kill, search);
            body.extend(choose(X32_BIT, low, high));
        } else if let Some(block) = wide {
            body.extend(search(block));
        }
        // Not this architecture: over its code to the next.
        code.push(Instruction {
            code: JEQ,
            jt: 1,
            jf: 0,
            k: audit,
        });
        code.push(plain(JA, length(&body)));
        code.extend(body);
    }
    code.extend(returns(Action::KILL_THREAD));
    code
}

fn length(code: &Code) -> u32 {
    u32::try_from(code.len()).unwrap_or(u32::MAX)
}

/// `low` below `number`, `high` from there on.
fn choose(number: u32, low: Code, high: Code) -> Code {
    let mut code = Code::with_capacity(low.len() + high.len() + 2);
    if let Ok(over) = u8::try_from(low.len()) {
        code.push(Instruction {
            code: JGE,
            jt: over,
            jf: 0,
            k: number,
        });
    } else {
        code.push(Instruction {
            code: JGE,
            jt: 0,
            jf: 1,
            k: number,
        });
        code.push(plain(JA, length(&low)));
    }
    code.extend(low);
    code.extend(high);
    code
}

/// The search for the number of a system call, which is loaded.
fn search(block: &Block) -> Code {
    let mut ranges: Vec<(u32, Code)> = Vec::new();
    let mut add = |from: u32, code: Code| match ranges.last_mut() {
        Some((_, last)) if *last == code => {}
        Some((at, last)) if *at == from => *last = code,
        _ => ranges.push((from, code)),
    };
    let default = returns(block.default);
    add(0, default.clone());
    for (number, rules) in &block.rules {
        add(*number, decide(&block.arch, rules, block.default));
        add(number + 1, default.clone());
    }
    if let Some((from, action)) = block.newer {
        add(from, returns(action));
    }
    tree(&ranges)
}

fn tree(ranges: &[(u32, Code)]) -> Code {
    match ranges {
        [] => Code::new(),
        [(_, code)] => code.clone(),
        _ => {
            let (low, high) = ranges.split_at(ranges.len() / 2);
            let first = high.first().map_or(0, |(from, _)| *from);
            choose(first, tree(low), tree(high))
        }
    }
}

/// The first rule whose conditions hold.
fn decide(arch: &Arch, rules: &[Rule], default: Action) -> Code {
    let mut code = Code::new();
    for rule in rules {
        code.extend(attempt(arch, rule));
        if rule.conditions.is_empty() {
            return code;
        }
    }
    code.extend(returns(default));
    code
}

/// Where an instruction of a rule leads.
#[derive(Clone, Copy)]
enum To {
    Next,
    Skip(u8),
    /// The condition does not hold: out of the rule.
    Out,
}

/// One rule, that goes on behind it when a condition does not hold.
fn attempt(arch: &Arch, rule: &Rule) -> Code {
    let mut steps: Vec<(u16, u32, To, To)> = Vec::new();
    for condition in &rule.conditions {
        test(arch, condition, &mut steps);
    }
    steps.push((RET, rule.action.0, To::Next, To::Next));
    // Six arguments of at most six instructions: an offset of 8 bits is enough.
    let total = steps.len();
    steps
        .into_iter()
        .enumerate()
        .map(|(index, (code, k, jt, jf))| {
            let out = u8::try_from(total - index - 1).unwrap_or(u8::MAX);
            let resolve = |to| match to {
                To::Next => 0,
                To::Skip(count) => count,
                To::Out => out,
            };
            Instruction {
                code,
                jt: resolve(jt),
                jf: resolve(jf),
                k,
            }
        })
        .collect()
}

fn test(arch: &Arch, condition: &Condition, steps: &mut Vec<(u16, u32, To, To)>) {
    let offset = ARGUMENTS + 8 * condition.argument;
    let (high_at, low_at) = if arch.is_big_endian() {
        (offset, offset + 4)
    } else {
        (offset + 4, offset)
    };
    let halves = |value: u64| {
        let [h0, h1, h2, h3, l0, l1, l2, l3] = value.to_be_bytes();
        (
            u32::from_be_bytes([h0, h1, h2, h3]),
            u32::from_be_bytes([l0, l1, l2, l3]),
        )
    };
    let (high, low) = halves(condition.value);
    let load = |steps: &mut Vec<_>, at| steps.push((LD, at, To::Next, To::Next));
    let wide = arch.wide;
    match condition.compare {
        Compare::Equal => {
            if wide {
                load(steps, high_at);
                steps.push((JEQ, high, To::Next, To::Out));
            }
            load(steps, low_at);
            steps.push((JEQ, low, To::Next, To::Out));
        }
        Compare::NotEqual => {
            if wide {
                load(steps, high_at);
                steps.push((JEQ, high, To::Next, To::Skip(2)));
            }
            load(steps, low_at);
            steps.push((JEQ, low, To::Out, To::Next));
        }
        Compare::MaskedEqual { mask } => {
            let (high_mask, low_mask) = halves(mask);
            if wide {
                load(steps, high_at);
                steps.push((AND, high_mask, To::Next, To::Next));
                steps.push((JEQ, high & high_mask, To::Next, To::Out));
            }
            load(steps, low_at);
            steps.push((AND, low_mask, To::Next, To::Next));
            steps.push((JEQ, low & low_mask, To::Next, To::Out));
        }
        Compare::Greater | Compare::GreaterOrEqual => {
            if wide {
                load(steps, high_at);
                // Greater already; or equal, and the other half decides.
                steps.push((JGT, high, To::Skip(3), To::Next));
                steps.push((JEQ, high, To::Next, To::Out));
            }
            load(steps, low_at);
            let jump = if condition.compare == Compare::Greater {
                JGT
            } else {
                JGE
            };
            steps.push((jump, low, To::Next, To::Out));
        }
        Compare::Less | Compare::LessOrEqual => {
            if wide {
                load(steps, high_at);
                steps.push((JGT, high, To::Out, To::Next));
                steps.push((JEQ, high, To::Next, To::Skip(2)));
            }
            load(steps, low_at);
            let jump = if condition.compare == Compare::Less {
                JGE
            } else {
                JGT
            };
            steps.push((jump, low, To::Out, To::Next));
        }
    }
}
