use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use minisgl_engine::LoadProgress;

/// Requests done, prompt and output tokens/s, on a terminal.
pub(crate) struct Progress {
    bar: ProgressBar,
    start: Instant,
    last_shown: Instant,
    prompt_tokens: u64,
    output_tokens: u64,
}

const REDRAW: Duration = Duration::from_millis(100);

impl Progress {
    /// A bar over `num_requests`, where that is known, or `None` where standard error is no terminal.
    pub(crate) fn on_terminal(num_requests: Option<usize>) -> Option<Self> {
        std::io::stderr().is_terminal().then(|| {
            let bar = match num_requests {
                Some(num) => ProgressBar::new(num as u64)
                    .with_style(style("{bar:30} {pos}/{len} requests  {msg}  [{elapsed} < {eta}]")),
                None => {
                    ProgressBar::no_length().with_style(style("{spinner} {pos} requests  {msg}  [{elapsed}]"))
                }
            };
            bar.tick();
            let now = Instant::now();
            Self { bar, start: now, last_shown: now, prompt_tokens: 0, output_tokens: 0 }
        })
    }

    pub(crate) fn add_prompt(&mut self, num_tokens: usize) {
        self.prompt_tokens += num_tokens as u64;
        self.show();
    }

    pub(crate) fn add_token(&mut self) {
        self.output_tokens += 1;
        if self.output_tokens.is_multiple_of(64) {
            self.show();
        }
    }

    pub(crate) fn add_ended(&mut self) {
        self.bar.inc(1);
        self.show();
    }

    fn show(&mut self) {
        let now = Instant::now();
        if now - self.last_shown < REDRAW {
            return;
        }
        self.last_shown = now;
        let seconds = (now - self.start).as_secs_f64();
        let rate = |tokens: u64| tokens as f64 / seconds;
        self.bar.set_message(format!(
            "prompt {:.0} tok/s, output {:.0} tok/s",
            rate(self.prompt_tokens),
            rate(self.output_tokens)
        ));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// A callback that shows how much of the weights is loaded, or `None` where standard error is no terminal.
pub(crate) fn load_bar() -> Option<Box<dyn FnMut(LoadProgress) + Send>> {
    let mut bar: Option<ProgressBar> = None;
    std::io::stderr().is_terminal().then(|| {
        Box::new(move |progress: LoadProgress| {
            let bar = bar.get_or_insert_with(|| {
                let bar = ProgressBar::new(progress.total_bytes as u64);
                bar.set_style(style("{bar:30} weights {bytes}/{total_bytes} ({binary_bytes_per_sec})"));
                bar
            });
            bar.set_position(progress.loaded_bytes as u64);
            if progress.loaded_bytes >= progress.total_bytes {
                bar.finish_and_clear();
            }
        }) as Box<dyn FnMut(LoadProgress) + Send>
    })
}

/// A template that is part of this file: if it were wrong, the plain bar is still a bar.
pub(crate) fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
