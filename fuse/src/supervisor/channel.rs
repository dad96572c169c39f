//! Messages of one word, one argument and at most one descriptor, over a socket pair.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

/// Longest message, bytes: a word, and a name or a sentence for the log.
const MESSAGE_MAX: usize = 1024;

/// One message.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) word: String,
    pub(super) argument: String,
    pub(super) descriptor: Option<OwnedFd>,
}

/// One end; the other is in another process, or will be.
#[derive(Debug)]
pub(super) struct Channel(OwnedFd);

impl Channel {
    /// Both ends. They keep the borders of messages, and say when the other end is gone.
    pub(super) fn pair() -> io::Result<(Self, OwnedFd)> {
        let (flags, kind) = (SocketFlags::CLOEXEC, SocketType::SEQPACKET);
        let (ours, theirs) = socketpair(AddressFamily::UNIX, kind, flags, None)?;
        Ok((Self(ours), theirs))
    }

    /// The end that came from the other process.
    pub(super) fn of(socket: OwnedFd) -> Self {
        Self(socket)
    }

    /// Says `word`. Never waits: whoever does not listen is about to end.
    pub(super) fn say(
        &self,
        word: &str,
        argument: &str,
        descriptor: Option<BorrowedFd<'_>>,
    ) -> io::Result<()> {
        let mut text = format!("{word} {argument}");
        let mut end = text.len().min(MESSAGE_MAX);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let descriptors: Vec<_> = descriptor.into_iter().collect();
        if !descriptors.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(&descriptors));
        }
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        sendmsg(
            &self.0,
            &[IoSlice::new(text.as_bytes())],
            &mut control,
            flags,
        )?;
        Ok(())
    }

    /// Waits for the next message; `None` when the other end is gone.
    pub(super) fn hear(&self) -> io::Result<Option<Message>> {
        self.receive(RecvFlags::CMSG_CLOEXEC)
    }

    /// The next message if there is one. `Err` with `WouldBlock` when there is none now.
    pub(super) fn hear_now(&self) -> io::Result<Option<Message>> {
        self.receive(RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT)
    }

    fn receive(&self, flags: RecvFlags) -> io::Result<Option<Message>> {
        let mut text = [0; MESSAGE_MAX];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = loop {
            let mut into = [IoSliceMut::new(&mut text)];
            match recvmsg(&self.0, &mut into, &mut control, flags) {
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::CONNRESET) => return Ok(None),
                other => break other?.bytes,
            }
        };
        if received == 0 {
            return Ok(None);
        }
        let mut descriptor = None;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(mut rights) = message {
                descriptor = rights.next();
            }
        }
        let text = String::from_utf8_lossy(&text[..received]);
        let (word, argument) = text.split_once(' ').unwrap_or((&text, ""));
        Ok(Some(Message {
            word: word.to_owned(),
            argument: argument.to_owned(),
            descriptor,
        }))
    }
}

impl From<Channel> for OwnedFd {
    fn from(channel: Channel) -> Self {
        channel.0
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn words_and_descriptors_arrive_in_order_and_so_does_the_end() {
        let (ours, theirs) = Channel::pair().unwrap();
        let theirs = Channel::of(theirs);
        let (mut reader, writer) = io::pipe().unwrap();
        ours.say("item", "a name", Some(writer.as_fd())).unwrap();
        drop(writer);
        ours.say("begin", "", None).unwrap();
        drop(ours);
        let item = theirs.hear().unwrap().unwrap();
        assert_eq!((&*item.word, &*item.argument), ("item", "a name"));
        let mut writer = std::fs::File::from(item.descriptor.unwrap());
        writer.write_all(b"through").unwrap();
        drop(writer);
        let mut said = String::new();
        reader.read_to_string(&mut said).unwrap();
        assert_eq!(said, "through");
        assert_eq!(theirs.hear_now().unwrap().unwrap().word, "begin");
        assert!(theirs.hear().unwrap().is_none());
    }

    #[test]
    fn a_sentence_that_is_too_long_is_cut_and_nobody_waits() {
        let (ours, theirs) = Channel::pair().unwrap();
        let theirs = Channel::of(theirs);
        let nothing = theirs.hear_now().unwrap_err();
        assert_eq!(nothing.kind(), io::ErrorKind::WouldBlock);
        ours.say("note", &"ä".repeat(MESSAGE_MAX), None).unwrap();
        let note = theirs.hear().unwrap().unwrap();
        assert!(note.argument.len() < MESSAGE_MAX && note.argument.ends_with('ä'));
    }
}
