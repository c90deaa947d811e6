//! Portals: a listening socket and the thread that accepts.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use socket2::{Domain, Protocol, Socket, Type};

use super::Inner;
use crate::info::PortalInfo;
use crate::session::enter::Arrival;

const BACKLOG: i32 = 1024;

pub(crate) struct Portal {
    pub(crate) info: PortalInfo,
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        // So that portals on both wildcards can be had.
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

impl Portal {
    pub(crate) fn open(service: Weak<Inner>, address: SocketAddr, group_tag: u16) -> io::Result<Portal> {
        let listener = listen(address)?;
        let info = PortalInfo { address: listener.local_addr()?, group_tag };
        let stop = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?);
        let (portal, stopped) = (info.clone(), Arc::clone(&stop));
        let thread = std::thread::Builder::new()
            .name("iscsi-portal".into())
            .spawn(move || accept_all(&service, &listener, &portal, &stopped))?;
        Ok(Portal { info, stop, thread: Some(thread) })
    }
}

impl Drop for Portal {
    fn drop(&mut self) {
        let _ = self.stop.write(1);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn accept_all(service: &Weak<Inner>, listener: &TcpListener, portal: &PortalInfo, stop: &EventFd) {
    loop {
        let mut fds = [PollFd::new(listener.as_fd(), PollFlags::POLLIN), PollFd::new(stop.as_fd(), PollFlags::POLLIN)];
        let polled = poll(&mut fds, PollTimeout::NONE);
        let stopped = fds[1].revents().is_some_and(|r| !r.is_empty());
        match polled {
            Ok(_) | Err(nix::errno::Errno::EINTR) if !stopped => {}
            _ => return,
        }
        match listener.accept() {
            Ok((socket, peer)) => {
                let Some(service) = service.upgrade() else { return };
                if service.closed.load(Ordering::Acquire) {
                    continue;
                }
                let Ok(local) = socket.local_addr() else { continue };
                let _ = socket.set_nonblocking(false);
                let Some(gate) = service.gate.came(&socket, service.clock.now() + service.limits.login_timeout) else {
                    continue;
                };
                let arrival = Arrival { service: Arc::clone(&service), socket, peer, local, portal: portal.clone() };
                let thread = std::thread::Builder::new().name("iscsi-conn".into()).spawn(move || arrival.serve(gate));
                if let Err(error) = thread {
                    tracing::error!("no thread for the connection from {peer}: {error}; it is closed");
                    service.gate.left(gate);
                }
            }
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(e) if e.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                // Out of descriptors, most likely: others must close some first.
                tracing::error!("accepting on {} failed: {error}", portal.address);
                std::thread::sleep(Duration::from_millis(100));
            }
        }
    }
}
