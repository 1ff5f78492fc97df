//! Where the time of a pass goes, component by component.

use enginecmp_shim::now_ns;

pub const COMPONENTS: [&str; 8] = ["embedding", "norm", "rope", "attention", "ffn", "lm_head", "sampling", "other"];

/// An index into [`COMPONENTS`].
#[derive(Debug, Clone, Copy)]
pub enum Component {
    Embedding,
    Norm,
    Rope,
    Attention,
    Ffn,
    LmHead,
    Sampling,
    Other,
}

/// Charges the time since the last reading of the clock to a component; stopped, it reads no clock.
#[derive(Debug, Default)]
pub struct Stopwatch {
    last_ns: Option<u64>,
    pub nanoseconds: [u64; COMPONENTS.len()],
}

impl Stopwatch {
    pub fn start(&mut self) {
        *self = Self { last_ns: Some(now_ns()), nanoseconds: [0; COMPONENTS.len()] };
    }

    pub fn stop(&mut self) {
        self.charge(Component::Other);
        self.last_ns = None;
    }

    /// Ends a piece of work of `component`.
    pub fn charge(&mut self, component: Component) {
        if let Some(last_ns) = self.last_ns {
            let now_ns = now_ns();
            self.nanoseconds[component as usize] += now_ns - last_ns;
            self.last_ns = Some(now_ns);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_are_the_whole_and_a_stopped_watch_counts_nothing() {
        let mut watch = Stopwatch::default();
        watch.charge(Component::Ffn);
        assert_eq!(watch.nanoseconds, [0; COMPONENTS.len()]);
        let before = now_ns();
        watch.start();
        std::thread::sleep(std::time::Duration::from_millis(2));
        watch.charge(Component::Ffn);
        watch.charge(Component::Norm);
        watch.stop();
        let whole = now_ns() - before;
        assert!(watch.nanoseconds[Component::Ffn as usize] >= 2_000_000);
        assert!(watch.nanoseconds.iter().sum::<u64>() <= whole);
        assert_eq!(COMPONENTS[Component::Ffn as usize], "ffn");
        assert_eq!(COMPONENTS[Component::Other as usize], "other");
    }
}
