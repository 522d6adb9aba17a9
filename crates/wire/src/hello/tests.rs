//! Hellos over a pair of real sockets: welcome, every refusal, and strangers on either side.

use super::*;
use proptest::prelude::*;
use std::os::unix::net::UnixStream;

fn roles() -> impl Strategy<Value = Role> {
    prop_oneof![
        Just(Role::Coordinator),
        Just(Role::Migration),
        any::<u32>().prop_map(|lane| Role::MemoryPush { lane }),
        Just(Role::MemoryDemand),
        any::<u32>().prop_map(|disk| Role::Disk { disk }),
    ]
}

/// Both ends' results.
fn meet(
    hello: Hello,
    given: Option<&Token>,
    required: Option<&Token>,
    judge: impl FnOnce(&Hello) -> Result<(), Refusal> + Send,
) -> (Result<(), WireError>, Result<Hello, WireError>) {
    let (mut here, mut there) = UnixStream::pair().unwrap();
    std::thread::scope(|scope| {
        let listener = scope.spawn(move || accept(&mut there, required, judge));
        (offer(&mut here, &hello, given), listener.join().unwrap())
    })
}

const HELLO: Hello = Hello { role: Role::Migration, session: SessionId(7) };

proptest! {
    #[test]
    fn a_hello_is_heard_as_it_was_said(role in roles(), session in any::<u64>(), secret in any::<[u8; 8]>(),
                                       guarded in any::<bool>()) {
        let token = Token::of(&secret);
        let hello = Hello { role, session: SessionId(session) };
        let (offered, accepted) = meet(hello, Some(&token), guarded.then_some(&token), |_| Ok(()));
        prop_assert!(offered.is_ok());
        prop_assert_eq!(accepted.unwrap(), hello);
    }

    #[test]
    fn only_the_right_secret_opens(a in any::<[u8; 4]>(), b in any::<[u8; 4]>()) {
        let (offered, accepted) = meet(HELLO, Some(&Token::of(&a)), Some(&Token::of(&b)), |_| Ok(()));
        prop_assert_eq!(offered.is_ok(), a == b);
        prop_assert_eq!(accepted.is_ok(), a == b);
    }

    #[test]
    fn noise_is_survived_on_both_sides(noise in prop::collection::vec(any::<u8>(), 0..120), dressed in any::<bool>()) {
        let mut bytes = if dressed { [&MAGIC[..], &[0, 1, 0, BODY_BYTES as u8]].concat() } else { Vec::new() };
        bytes.extend_from_slice(&noise);
        for listens in [true, false] {
            let (mut here, mut there) = UnixStream::pair().unwrap();
            here.write_all(&bytes).unwrap();
            here.shutdown(std::net::Shutdown::Write).unwrap();
            if listens {
                let required = Token::of(b"secret");
                prop_assert!(accept(&mut there, Some(&required), |_| Ok(())).is_err());
            } else {
                let _ = offer(&mut there, &HELLO, None);
            }
        }
    }
}

#[test]
fn another_version_is_refused_and_both_are_named() {
    let (mut here, mut there) = UnixStream::pair().unwrap();
    let mut bytes = hello_bytes(&HELLO, None);
    bytes[8..10].copy_from_slice(&9u16.to_be_bytes());
    here.write_all(&bytes).unwrap();
    let Err(WireError::Turned(refusal)) = accept(&mut there, None, |_| Ok(())) else { panic!("accepted") };
    assert_eq!(refusal.code, RefusalCode::Version);
    assert!(refusal.text.contains("version 1 ") && refusal.text.contains("version 9"), "{refusal}");

    let (mut here, mut there) = UnixStream::pair().unwrap();
    let mut answer = answer_bytes(None);
    answer[8..10].copy_from_slice(&9u16.to_be_bytes());
    there.write_all(&answer).unwrap();
    let error = offer(&mut here, &HELLO, None).unwrap_err();
    assert!(matches!(error, WireError::Version { theirs: 9, .. }));
    let text = error.to_string();
    assert!(text.contains("version 1 ") && text.contains("version 9"), "{text}");
}

#[test]
fn refusals_arrive_with_code_and_text() {
    let token = Token::of(b"secret");
    let wrong = Token::of(b"Secret");
    for (given, code) in [(None, RefusalCode::Token), (Some(&wrong), RefusalCode::Token)] {
        let (offered, accepted) = meet(HELLO, given, Some(&token), |_| panic!("a stranger is not judged"));
        let Err(WireError::Refused(refusal)) = offered else { panic!("{offered:?}") };
        assert_eq!(refusal.code, code);
        assert!(refusal.text.contains("--token-file"), "{refusal}");
        assert!(matches!(accepted, Err(WireError::Turned(sent)) if sent == refusal));
    }
    let busy = Refusal::new(RefusalCode::Busy, "ü".repeat(2000));
    let (offered, _) = meet(HELLO, None, None, |hello| {
        assert_eq!(*hello, HELLO);
        Err(busy)
    });
    let Err(WireError::Refused(refusal)) = offered else { panic!("{offered:?}") };
    assert_eq!(refusal.code, RefusalCode::Busy);
    assert!(refusal.text.len() <= MOST_TEXT_BYTES && refusal.text.starts_with("ü"));
}

#[test]
fn strangers_are_recognized() {
    let (mut here, mut there) = UnixStream::pair().unwrap();
    there.write_all(b"HTTP/1.1 400 Bad Request\r\n").unwrap();
    assert!(matches!(offer(&mut here, &HELLO, None), Err(WireError::NotWhimbrel { .. })));
    assert!(matches!(accept(&mut here, None, |_| Ok(())), Err(WireError::NotWhimbrel { .. })));
}

#[test]
fn the_forms_that_do_not_block_speak_the_same() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let token = Token::of(b"secret");
    runtime.block_on(async {
        let (mut here, mut there) = tokio::io::duplex(4096);
        let (offered, accepted) = tokio::join!(
            offer_async(&mut here, &HELLO, Some(&token)),
            accept_async(&mut there, Some(&token), |_| Ok(()))
        );
        offered.unwrap();
        assert_eq!(accepted.unwrap(), HELLO);
        let (offered, accepted) =
            tokio::join!(offer_async(&mut here, &HELLO, None), accept_async(&mut there, Some(&token), |_| Ok(())));
        assert!(matches!(offered, Err(WireError::Refused(_))));
        assert!(matches!(accepted, Err(WireError::Turned(_))));
    });
}

#[test]
fn a_token_file_is_read_without_its_line_end() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("token");
    std::fs::write(&path, "  secret\n").unwrap();
    assert!(Token::from_file(&path).unwrap().is(&Token::of(b"secret").0));
    assert!(!format!("{:?}", Token::from_file(&path)).contains("secret"));
    for content in [Vec::new(), b" \n".to_vec(), vec![b'x'; 5000]] {
        std::fs::write(&path, content).unwrap();
        assert!(matches!(Token::from_file(&path), Err(WireError::Token { .. })));
    }
    assert!(Token::from_file(&folder.path().join("absent")).is_err());
}
