//! Delivery, return, and interrupted calls.
use std::time::Duration;

use rt::regs::TrapFrame;

use super::{Caller, RIP, in_program, in_thread};
use crate::{
    call::{Ctx, Ending},
    errno::ERESTARTNOHAND,
    program::ExitStatus,
    signal::{SIGSEGV, SigInfo, SigSet, deliver::deliver, send},
    thread::Thread,
};

const HANDLER: u64 = 0x40_2000;
const RESTORER: u64 = 0x40_3000;
const SA_RESTORER: u64 = 0x0400_0000;
const SA_RESTART: u64 = 0x1000_0000;
const SIGUSR1: u64 = 10;
const EINTR: i64 = -4;

fn install(caller: &Caller, flags: u64) {
    install_for(caller, SIGUSR1, flags);
}

fn install_for(caller: &Caller, signal: u64, flags: u64) {
    let action: Vec<u8> = [HANDLER, flags | SA_RESTORER, RESTORER, 0].iter().flat_map(|w| w.to_le_bytes()).collect();
    let at = caller.write(2048, &action);
    assert_eq!(caller.call(13, &[signal, at, 0, 8]), 0);
}

#[test]
fn a_handler_gets_its_frame_and_returns_to_where_it_was() {
    in_program(|caller| {
        install(caller, 0);
        let own = u64::from(caller.program.pid);
        let mut frame = caller.frame(234, &[own, own, SIGUSR1]);
        frame.rbx = 0xb0b;
        frame.xmm[3] = 42;
        let before = frame;
        caller.enter(&mut frame);
        assert_eq!((frame.rip, frame.rdi), (HANDLER, SIGUSR1));
        assert_eq!(frame.rsp % 16, 8);
        assert!(frame.rsp < before.rsp - 128);
        let mut top = [0; 8];
        rt::rt().user().read(&mut top, frame.rsp).unwrap();
        assert_eq!(u64::from_le_bytes(top), RESTORER);

        // The handler returns: `ret` takes the restorer's address, which calls rt_sigreturn.
        let mut back = TrapFrame { rax: 15, error: 15, rsp: frame.rsp + 8, rip: RESTORER + 9, ..caller.frame(15, &[]) };
        back.rbx = 0;
        caller.enter(&mut back);
        assert_eq!((back.rip, back.rsp, back.rbx, back.rax), (before.rip, before.rsp, 0xb0b, 0));
        assert_eq!(back.xmm[3], 42);
        assert_eq!(back.vector, TrapFrame::REPLACED);
    });
}

#[test]
fn an_interrupted_read_fails_or_restarts_as_the_action_says() {
    for (flags, restarts) in [(0, false), (SA_RESTART, true)] {
        in_program(move |caller| {
            install(caller, flags);
            let ends = caller.memory + 512;
            assert_eq!(caller.call(293, &[ends, 0]), 0);
            let reader = u64::from(u32::from_le_bytes(caller.read(512)));
            let (program, task) = (caller.program.clone(), caller.task.clone());
            let sent = in_thread(&program, move |other| {
                std::thread::sleep(Duration::from_millis(20));
                let thread = crate::thread::Thread::of(&task).unwrap();
                send::to_thread(&task, thread, SigInfo::from_sender(SIGUSR1 as u32, 0, other.program.pid)).unwrap();
            });
            let mut frame = caller.frame(0, &[reader, caller.memory, 8]);
            caller.enter(&mut frame);
            sent.recv().unwrap();
            assert_eq!(frame.rip, HANDLER);
            let mut context = [0; 304];
            rt::rt().user().read(&mut context, frame.rsp + 8).unwrap();
            let word = |index: usize| u64::from_le_bytes(context[40 + index * 8..48 + index * 8].try_into().unwrap());
            let (rax, rip) = (word(13) as i64, word(16));
            if restarts {
                assert_eq!((rax, rip), (0, RIP - 2));
            } else {
                assert_eq!((rax, rip), (EINTR, RIP));
            }
        });
    }
}

#[test]
fn ignored_and_blocked_signals_interrupt_nothing() {
    in_program(|caller| {
        let own = u64::from(caller.program.pid);
        // SIGWINCH is ignored by default.
        assert_eq!(caller.call(234, &[own, own, 28]), 0);
        install(caller, 0);
        let set = caller.write(1024, &(1u64 << (SIGUSR1 - 1)).to_le_bytes());
        assert_eq!(caller.call(14, &[0, set, 0, 8]), 0);
        let mut frame = caller.frame(234, &[own, own, SIGUSR1]);
        caller.enter(&mut frame);
        assert_eq!((frame.rip, frame.rax), (RIP, 0));
        assert_eq!(caller.call(127, &[set, 8]), 0);
        assert_eq!(u64::from_le_bytes(caller.read(1024)), 1 << (SIGUSR1 - 1));
        // sigtimedwait takes it.
        assert_eq!(caller.call(128, &[set, 0, 0, 8]), SIGUSR1 as i64);
    });
}

/// A handler whose frame has no place: SIGSEGV comes instead, and if that has none either, the end.
#[test]
fn a_stack_that_takes_no_frame_ends_the_program() {
    const NOWHERE: u64 = 0x1_0000;
    in_program(|caller| {
        install(caller, 0);
        install_for(caller, u64::from(SIGSEGV), 0);
        let thread = Thread::of(&caller.task).unwrap();
        let info = SigInfo::from_sender(SIGUSR1 as u32, 0, caller.program.pid);
        send::to_thread(&caller.task, thread, info).unwrap();
        let mut frame = TrapFrame { rsp: NOWHERE, ..caller.frame(39, &[]) };
        let mut cx = Ctx::new(&caller.task, thread, &mut frame);
        assert!(deliver(&mut cx, None));
        assert_eq!(cx.ending, Some(Ending::Program(ExitStatus::Signal(SIGSEGV as u8))));
    });
}

/// A wait under another mask is interrupted for nothing, and what that mask keeps back is pending.
#[test]
fn what_a_temporary_mask_kept_back_comes_with_the_old_one() {
    in_program(|caller| {
        install(caller, 0);
        let thread = Thread::of(&caller.task).unwrap();
        let mut state = thread.signals.lock();
        state.saved_mask = Some(state.mask);
        state.mask = SigSet::of(SIGUSR1 as u32);
        drop(state);
        let info = SigInfo::from_sender(SIGUSR1 as u32, 0, caller.program.pid);
        send::to_thread(&caller.task, thread, info).unwrap();
        let mut frame = caller.frame(271, &[]);
        assert!(deliver(&mut Ctx::new(&caller.task, thread, &mut frame), Some(ERESTARTNOHAND)));
        assert_eq!((frame.rip, frame.rdi), (HANDLER, SIGUSR1));
        assert!(!caller.task.is_interrupted());
    });
}

/// The thread that was chosen for a program's signal blocks it before it takes it, or ends.
#[test]
fn a_signal_that_its_thread_does_not_take_goes_to_another() {
    in_program(|caller| {
        install(caller, 0);
        let thread = Thread::of(&caller.task).unwrap();
        let (program, task) = (caller.program.clone(), caller.task.clone());
        // The other thread is the later one on the list, and comes second.
        let (ready, go) = (std::sync::mpsc::channel(), std::sync::mpsc::channel());
        let (tell_ready, wait_go) = (ready.0, go.1);
        let other = in_thread(&program, move |other| {
            tell_ready.send(other.task.clone()).unwrap();
            wait_go.recv().unwrap();
        });
        let other_task = ready.1.recv().unwrap();
        let info = SigInfo::from_sender(SIGUSR1 as u32, 0, program.pid);
        send::to_program(&program, info).unwrap();
        assert!(task.is_interrupted() && !other_task.is_interrupted());
        thread.signals.lock().mask = SigSet::of(SIGUSR1 as u32);
        let mut frame = caller.frame(39, &[]);
        assert!(!deliver(&mut Ctx::new(&task, thread, &mut frame), None));
        assert!(other_task.is_interrupted());
        other_task.clear_interrupt();
        send::hand_over(&program, &task, SigSet(u64::MAX));
        assert!(other_task.is_interrupted());
        go.0.send(()).unwrap();
        other.recv().unwrap();
    });
}
