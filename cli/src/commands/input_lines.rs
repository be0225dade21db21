//! `hvkube vm input`: a line of input after the other, streamed to the daemon as they come.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser};
use hvkube_sdk::Input;
use hvkube_sdk::v1::input_event::Event;
use hvkube_sdk::v1::{ButtonEvent, InputAction, MouseButton, Size, TextEvent};
use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, AsyncReadExt as _, BufReader};

use crate::commands::input::{Button, ClickArgs, DragArgs, KeyArgs, MoveArgs, ScrollArgs};
use crate::context::Context;
use crate::report::{Failure, Outcome};
use crate::units;

/// Longest line: text of the API's limit, every character of it escaped.
const MAX_LINE: u64 = 2 << 20;

#[derive(Debug, Args)]
#[command(after_help = "\
Lines: click X Y, move X Y, drag X,Y X,Y.., scroll --dy N, key KEYS.., each with the options of the command of that name; \
press KEY, release KEY (a button: press --button left); type TEXT (\\n, \\t and \\\\ as in C); pause TIME; release-all. \
Empty ones and those that begin with # are passed over. Each is done before the next; keys held down are released when a \
line fails.")]
pub(crate) struct Lines {
    /// VM (id or name) or leases/ID
    name: String,
    /// Where the lines are; `-` is standard input
    #[arg(default_value = "-")]
    file: PathBuf,
    /// Size of the picture that positions were read from [default: the screen's own]
    #[arg(long, value_name = "WxH", value_parser = units::size)]
    frame_size: Option<Size>,
}

/// What a line says.
#[derive(Debug, Parser)]
#[command(no_binary_name = true, disable_help_flag = true, disable_help_subcommand = true)]
enum Line {
    Click(ClickArgs),
    Move(MoveArgs),
    Drag(DragArgs),
    Scroll(ScrollArgs),
    Key(KeyArgs),
    Press(Hold),
    Release(Hold),
    Pause {
        #[arg(value_parser = units::duration)]
        time: Duration,
    },
    ReleaseAll,
}

#[derive(Debug, Args)]
struct Hold {
    #[arg(required_unless_present = "button")]
    key: Option<String>,
    #[arg(long, value_enum, conflicts_with = "key")]
    button: Option<Button>,
}

impl Hold {
    fn onto(self, input: Input, action: InputAction) -> Input {
        match (self.key, self.button, action) {
            (Some(key), _, InputAction::Press) => input.key_down(key),
            (Some(key), ..) => input.key_up(key),
            (None, button, _) => {
                let button = button.map_or(MouseButton::Left, MouseButton::from).into();
                input.event(Event::Button(ButtonEvent { button, action: action.into() }))
            }
        }
    }
}

/// The batch that a line stands for; none for one that is passed over.
fn batch(line: &str) -> Result<Option<Input>, Failure> {
    let trimmed = line.trim_start();
    if trimmed.trim_end().is_empty() || trimmed.starts_with('#') {
        return Ok(None);
    }
    let input = Input::new();
    // Text keeps its spaces and quotes.
    if let Some(text) = trimmed.strip_prefix("type ") {
        let text = unescape(text.trim_end_matches(['\r', '\n']))?;
        return Ok(Some(input.event(Event::Text(TextEvent { text, ..Default::default() }))));
    }
    let line = Line::try_parse_from(trimmed.split_whitespace()).map_err(|error| {
        // The first line of clap's says what is wrong; the usage is that of a program.
        let text = error.to_string();
        let what = text.lines().next().unwrap_or_default();
        Failure::Usage(what.trim_start_matches("error: ").to_owned())
    })?;
    Ok(Some(match line {
        Line::Click(args) => args.onto(input),
        Line::Move(args) => args.onto(input)?,
        Line::Drag(args) => args.onto(input)?,
        Line::Scroll(args) => args.onto(input),
        Line::Key(args) => args.onto(input)?,
        Line::Press(hold) => hold.onto(input, InputAction::Press),
        Line::Release(hold) => hold.onto(input, InputAction::Release),
        Line::Pause { time } => input.pause(time),
        Line::ReleaseAll => input.release_all(),
    }))
}

fn unescape(text: &str) -> Result<String, Failure> {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (c, if c == '\\' { chars.next() } else { None }) {
            ('\\', Some('n')) => out.push('\n'),
            ('\\', Some('t')) => out.push('\t'),
            ('\\', Some('\\')) => out.push('\\'),
            ('\\', other) => {
                let other = other.map(String::from).unwrap_or_default();
                return Err(Failure::Usage(format!("\\{other} stands for nothing; \\n, \\t and \\\\ do")));
            }
            (c, _) => out.push(c),
        }
    }
    Ok(out)
}

pub(crate) async fn run(context: &Context, args: Lines) -> Outcome {
    let mut lines: Box<dyn AsyncBufRead + Unpin> = if args.file.as_os_str() == "-" {
        Box::new(BufReader::new(tokio::io::stdin()))
    } else {
        let what = format!("read {}", args.file.display());
        Box::new(BufReader::new(tokio::fs::File::open(&args.file).await.map_err(|e| Failure::io(&what, &e))?))
    };
    let mut sink = context.client().await?.target(&args.name).stream_input().await?;
    let mut number = 0_u64;
    loop {
        number += 1;
        let mut line = Vec::new();
        let read = (&mut lines).take(MAX_LINE).read_until(b'\n', &mut line).await;
        if read.map_err(|error| Failure::io("read the lines", &error))? == 0 {
            break;
        }
        let at = |what: String| Failure::Usage(format!("line {number}: {what}"));
        if line.len() as u64 == MAX_LINE {
            return Err(at("is longer than 2 MiB".to_owned()));
        }
        let line = String::from_utf8(line).map_err(|_| at("is no UTF-8".to_owned()))?;
        let input = batch(&line).map_err(|failure| match failure {
            Failure::Usage(what) => at(what),
            other => other,
        })?;
        if let Some(mut input) = input {
            if let Some(size) = args.frame_size {
                input = input.frame_size(size.width, size.height);
            }
            sink.send(input).await?;
        }
    }
    let done = sink.finish().await?;
    context.note(format_args!("{} lines, {} events done", done.batches, done.events));
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(line: &str) -> Vec<Event> {
        let input = batch(line).unwrap_or_else(|_| panic!("legal: {line}")).expect("a batch");
        input.events().iter().filter_map(|event| event.event.clone()).collect()
    }

    #[test]
    fn lines_are_what_the_commands_are() {
        assert!(matches!(&events("click 3 4 --count 2\n")[..], [Event::Click(c)] if c.count == 2));
        assert!(
            matches!(&events("move -3 4 --by --via 1,-2")[..], [Event::Move(m)] if m.relative && m.via[0].y == -2)
        );
        assert!(matches!(&events("scroll --pixels-y 120")[..], [Event::Scroll(s)] if s.pixels_y == 120));
        assert_eq!(events("key ctrl+a Delete").len(), 2);
        assert!(matches!(&events("press rshift")[..], [Event::Key(k)] if k.key == "rshift"));
        assert!(matches!(&events("release --button right")[..], [Event::Button(b)] if b.button == 3));
        assert!(matches!(&events("type  a \"b\"\\n\r\n")[..], [Event::Text(t)] if t.text == " a \"b\"\n"));
        assert!(matches!(&events("pause 1.5s")[..], [Event::Pause(p)] if p.seconds == 1));
        assert!(matches!(&events("release-all")[..], [Event::ReleaseAll(_)]));
        for nothing in ["", "  \n", "# click 1 1"] {
            assert!(batch(nothing).is_ok_and(|input| input.is_none()), "{nothing:?}");
        }
        for bad in ["clack", "click 1", "move -1 2", "press", "type \\x", "scroll", "--help"] {
            assert!(matches!(batch(bad), Err(Failure::Usage(_))), "{bad:?}");
        }
    }
}
