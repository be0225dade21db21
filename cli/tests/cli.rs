//! The program as people run it: a real process against a fake daemon on loopback.

#[path = "../../sdk/rust/tests/fake/mod.rs"]
mod fake;
mod harness;

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::process::Stdio;

use fake::{TOKEN, desktop::PICTURE};
use harness::{Daemon, snapshot};
use hvkube_sdk::ReleasePolicy;
use hvkube_sdk::v1::input_event::Event;

#[test]
fn lists_for_people() {
    let daemon = Daemon::start();
    snapshot!("vm_list", daemon.run(&["vm", "list"]));
    snapshot!("vm_list_wide", daemon.run(&["vm", "list", "-o", "wide"]));
    snapshot!(
        "vm_list_of_states",
        daemon.run(&["vm", "list", "--pool", "browser", "--state", "saved,error"])
    );
    snapshot!("vm_list_empty", daemon.run(&["vm", "list", "--pool", "none"]));
    snapshot!("pool_list", daemon.run(&["pool", "list", "-o", "wide"]));
    snapshot!("checkpoint_list", daemon.run(&["vm", "checkpoint", "list", "browser-1"]));
}

#[test]
fn lists_for_programs() {
    let daemon = Daemon::start();
    snapshot!("vm_list_name", daemon.run(&["vm", "list", "-o", "name"]));
    snapshot!("vm_list_json", daemon.run(&["-o", "json", "vm", "list", "--state", "saved"]));
    snapshot!("vm_list_yaml", daemon.run(&["vm", "list", "-o", "yaml", "--state", "saved"]));
    snapshot!("lease_list_json_empty", daemon.run(&["lease", "list", "-o", "json"]));
}

#[test]
fn single_resources() {
    let daemon = Daemon::start();
    snapshot!("vm_info", daemon.run(&["vm", "info", "browser-1"]));
    snapshot!("vm_info_of_a_broken_one", daemon.run(&["vm", "get", "vms/browser-3"]));
    snapshot!("host_get", daemon.run(&["host", "get"]));
    snapshot!("lease_acquire", daemon.run(&["lease", "acquire", "browser", "--ttl", "10m"]));
    snapshot!("vm_resume", daemon.run(&["vm", "resume", "browser-2"]));
}

#[test]
fn failures_say_what_to_do_and_have_codes() {
    let daemon = Daemon::start();
    snapshot!("err_not_found", daemon.run(&["vm", "info", "nope"]));
    snapshot!("err_illegal_state", daemon.run(&["vm", "resume", "browser-3"]));
    snapshot!("err_not_running", daemon.run(&["vm", "screenshot", "browser-2", "-o", "never.png"]));
    snapshot!("err_exhausted", daemon.run(&["lease", "acquire", "empty", "--wait", "0"]));
    snapshot!(
        "err_exists",
        daemon.run(&["pool", "create", "--name", "browser", "--template", "linux", "--count", "1"])
    );
    snapshot!("err_out_of_frame", daemon.run(&["vm", "click", "browser-1", "5000", "10"]));
    snapshot!("err_token", daemon.run(&["--token", "wrong", "vm", "list"]));
    snapshot!("err_timeout", daemon.run(&["--timeout", "200ms", "lease", "acquire", "busy"]));
    snapshot!("err_operation", daemon.run(&["template", "create", "--name", "broken", "--disk", "/x.raw"]));
    snapshot!("err_settle", daemon.run(&["vm", "wait", "browser-1", "--timeout", "100ms"]));
}

#[test]
fn a_daemon_that_is_not_there() {
    let nowhere = Daemon::nowhere();
    snapshot!("err_unreachable", nowhere.run(&["vm", "list"]));
    snapshot!("err_endpoint", nowhere.run(&["--endpoint", "https://h:1", "vm", "list"]));
    snapshot!("err_token_file", nowhere.run(&["--token-file", "/no/such/file", "vm", "list"]));
}

#[test]
fn clipboard_and_windows() {
    let daemon = Daemon::start();
    let folder = tempfile::tempdir().expect("a folder");
    let picture = folder.path().join("in.png");
    fs::write(&picture, PICTURE).expect("a file");
    let picture = picture.to_str().expect("utf-8");
    snapshot!("clipboard_empty", daemon.run(&["vm", "clipboard", "get", "browser-1"]));
    assert_eq!(
        daemon
            .command(&["vm", "clipboard", "set", "browser-1", "two", "words ä"])
            .status()
            .expect("runs")
            .code(),
        Some(0)
    );
    snapshot!("clipboard_get", daemon.run(&["vm", "clipboard", "get", "browser-1"]));
    let set = ["vm", "clipboard", "set", "browser-1", "--file", picture];
    assert_eq!(daemon.command(&set).status().expect("runs").code(), Some(0));
    let out = folder.path().join("out.png");
    let get = ["vm", "clipboard", "get", "browser-1", "-o", out.to_str().expect("utf-8")];
    assert_eq!(daemon.command(&get).status().expect("runs").code(), Some(0));
    assert_eq!(fs::read(&out).expect("the picture"), PICTURE);
    snapshot!("clipboard_no_text", daemon.run(&["vm", "clipboard", "get", "browser-1"]));

    snapshot!("windows", daemon.run(&["vm", "windows", "browser-1"]));
    snapshot!("focus", daemon.run(&["vm", "focus", "browser-1", "mousepad"]));
    snapshot!("windows_wide", daemon.run(&["vm", "windows", "browser-1", "-o", "wide"]));
    snapshot!("windows_name", daemon.run(&["vm", "windows", "browser-1", "-o", "name"]));
    snapshot!("mask", daemon.run(&["vm", "mask", "browser-1", "1,2,3,4", "10,20,30,40"]));
    snapshot!("mask_list", daemon.run(&["vm", "mask", "browser-1"]));
    snapshot!("mask_clear", daemon.run(&["vm", "mask", "browser-1", "--clear"]));
    snapshot!("focus_unknown", daemon.run(&["vm", "focus", "browser-1", "editor"]));
    snapshot!("focus_gone", daemon.run(&["vm", "focus", "browser-1", "77"]));
}

#[test]
fn secrets_come_from_files_or_standard_input_only() {
    let daemon = Daemon::start();
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("password");
    fs::write(&file, "open sesame\r\n").expect("a file");
    let create =
        ["secret", "create", "shop", "--pool", "browser", "--caller", "ci", "--description", "of the shop"];
    let from_file = [&create[..], &["--file", file.to_str().expect("utf-8")]].concat();
    snapshot!("secret_create", daemon.run(&from_file));
    let mut piped = daemon.command(&["secret", "create", "mail"]);
    piped.stdin(fs::File::open(&file).expect("a file"));
    assert_eq!(piped.output().expect("runs").status.code(), Some(0));
    let values: Vec<_> = daemon.fake.seen().secrets.iter().map(|(_, value)| value.clone()).collect();
    assert_eq!(values, ["open sesame", "open sesame"]);
    snapshot!("secret_list", daemon.run(&["secret", "list"]));
    snapshot!("secret_get", daemon.run(&["secret", "get", "shop", "-o", "wide"]));
    let typed = daemon.command(&["vm", "type", "browser-1", "--secret", "shop", "--enter"]).output();
    assert_eq!(typed.expect("runs").status.code(), Some(0));
    let Some(Event::Text(text)) = daemon.fake.seen().batches[0].events[0].event.clone() else {
        panic!("no text");
    };
    assert_eq!((text.text.as_str(), text.secret.as_str()), ("", "secrets/shop"));
    snapshot!("secret_delete", daemon.run(&["secret", "delete", "shop"]));
    snapshot!("secret_gone", daemon.run(&["secret", "get", "shop"]));
    snapshot!("usage_secret", daemon.run(&["vm", "type", "browser-1", "text", "--secret", "shop"]));
}

#[test]
fn usage_errors_name_the_argument() {
    let nowhere = Daemon::nowhere();
    for (name, arguments) in [
        ("usage_coordinate", &["vm", "click", "v1", "10", "-5"][..]),
        ("usage_point", &["vm", "drag", "v1", "1,2", "3"]),
        ("usage_duration", &["lease", "acquire", "p", "--ttl", "soon"]),
        ("usage_memory", &["template", "create", "--disk", "d", "--memory", "lots"]),
        ("usage_size", &["template", "create", "--disk", "d", "--display", "1280"]),
        ("usage_ending", &["vm", "screenshot", "v1", "-o", "screen.tiff"]),
        ("usage_cp", &["vm", "cp", "a", "b"]),
        ("usage_update", &["pool", "update", "p"]),
    ] {
        snapshot!(name, nowhere.run(arguments));
    }
}

#[test]
fn help_pages() {
    let nowhere = Daemon::nowhere();
    for (name, arguments) in [
        ("help", &["--help"][..]),
        ("help_template_create", &["template", "create", "--help"]),
        ("help_pool_create", &["pool", "create", "--help"]),
        ("help_vm", &["vm", "--help"]),
        ("help_vm_exec", &["vm", "exec", "--help"]),
        ("help_lease_run", &["lease", "run", "--help"]),
    ] {
        snapshot!(name, nowhere.run(arguments));
    }
}

#[test]
fn what_happened_is_listed() {
    let daemon = Daemon::start();
    snapshot!("events_list", daemon.run(&["events", "list"]));
    snapshot!("events_list_json", daemon.run(&["events", "list", "--kind", "vm-moved", "-o", "json"]));
    let last = daemon.run(&["events", "list", "--tail", "1", "-o", "name"]);
    assert_eq!(last, "code: 0\n--- stdout\nr2\n--- stderr\n");
    let of_agent = daemon.run(&["events", "list", "--agent", "a-1", "-o", "json"]);
    assert!(of_agent.contains("\"agent\": \"agents/a-1\""), "{of_agent}");
    snapshot!("events_list_empty", daemon.run(&["events", "list", "--kind", "pool-deleted"]));
    snapshot!("usage_kind", daemon.run(&["events", "list", "--kind", "vm-born"]));
}

/// Runs a command that goes on for ever until it has written so many lines, and gives them.
fn first_lines(daemon: &Daemon, arguments: &[&str], lines: usize) -> Vec<String> {
    let mut child = daemon.command(arguments).stdout(Stdio::piped()).spawn().expect("runs");
    let stdout = BufReader::new(child.stdout.take().expect("piped"));
    let read = stdout.lines().take(lines).collect::<Result<Vec<_>, _>>().expect("text");
    child.kill().expect("killed");
    child.wait().expect("ended");
    read
}

#[test]
fn lists_that_watch_go_on_over_breaks() {
    let daemon = Daemon::start();
    // The list, what came, and what is news after the watch had to begin anew: nothing twice.
    let lines = first_lines(&daemon, &["vm", "list", "--watch", "-o", "name"], 3);
    assert_eq!(lines, ["vms/browser-1", "vms/browser-2", "vms/browser-3"]);
    let lines = first_lines(&daemon, &["pool", "list", "-w", "-o", "name"], 1);
    assert_eq!(lines, ["pools/browser"]);
    let lines = first_lines(&daemon, &["agent", "list", "--watch", "-o", "name"], 2);
    assert_eq!(lines, ["agents/a-1", "agents/a-2"]);
    assert_eq!(daemon.fake.seen().agent_watches, 1);
    let lines = first_lines(&daemon, &["events", "list", "--watch", "-o", "name"], 3);
    assert_eq!(lines, ["r1", "r2", "r3"]);
    let lines = first_lines(&daemon, &["events", "list", "--watch", "--tail", "1", "-o", "name"], 2);
    assert_eq!(lines, ["r2", "r3"], "the last of what was, then what comes");
}

#[test]
fn a_backup_names_its_file() {
    let daemon = Daemon::start();
    snapshot!("host_backup", daemon.run(&["host", "backup", "/srv/copy.db"]));
    assert!(!daemon.fake.seen().backup.expect("asked for").overwrite);
    snapshot!("host_backup_exists", daemon.run(&["host", "backup", "/srv/taken.db"]));
    daemon.run(&["host", "backup", "relative.db", "--overwrite"]);
    let asked = daemon.fake.seen().backup.expect("asked for");
    let here = std::env::current_dir().expect("a folder").join("relative.db");
    assert_eq!((asked.path.as_str(), asked.overwrite), (here.to_str().expect("text"), true));
}

#[test]
fn colours_only_where_they_are_wanted() {
    let daemon = Daemon::start();
    let colored = |arguments: &[&str], no_color: bool| {
        let mut command = daemon.command(arguments);
        if no_color {
            command.env("NO_COLOR", "1");
        }
        let output = command.output().expect("runs");
        output.stdout.contains(&0x1b)
    };
    assert!(!colored(&["vm", "list"], false), "no terminal, no colours");
    assert!(colored(&["vm", "list", "--color", "always"], false));
    assert!(!colored(&["vm", "list"], true));
    assert!(!colored(&["vm", "list", "--color", "never"], false));
    let out = daemon.command(&["vm", "info", "browser-3"]).output().expect("runs").stdout;
    assert!(!out.contains(&0x1b), "what a guest wrote stays text");
}

#[test]
fn lines_of_the_sketch_work_as_written() {
    let daemon = Daemon::start();
    let dir = tempfile::tempdir().expect("temporary directory");
    for line in [
        r"template create --name win11-chrome --vhdx C:\Templates\win11.vhdx",
        "pool create --name browser-pool --template win11-chrome --count 5",
        "vm list",
        "vm resume browser-2",
        "vm screenshot browser-1 -o screen.png",
    ] {
        let arguments: Vec<&str> = line.split(' ').collect();
        let output = daemon.command(&arguments).current_dir(dir.path()).output().expect("runs");
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    }
    assert_eq!(fs::read(dir.path().join("screen.png")).expect("written"), PICTURE);
    let request = daemon.fake.seen().template.expect("made");
    let source = request.template.and_then(|template| template.source).expect("given");
    assert_eq!(
        (request.template_id.as_str(), source.disk_path.as_str()),
        ("win11-chrome", r"C:\Templates\win11.vhdx")
    );
}

#[test]
fn pictures_go_to_files_and_pipes() {
    let daemon = Daemon::start();
    let output = daemon.command(&["vm", "screenshot", "browser-1", "-o", "-"]).output().expect("runs");
    assert_eq!(output.stdout, PICTURE);
    let dir = tempfile::tempdir().expect("temporary directory");
    let file = dir.path().join("after.jpg");
    let path = file.to_str().expect("text");
    let shown = daemon.run(&["vm", "click", "leases/l-1", "10", "20", "--screenshot", path]);
    assert!(shown.starts_with("code: 0"), "{shown}");
    assert_eq!(fs::read(&file).expect("written"), PICTURE);
    assert_eq!(daemon.fake.seen().acts[0].options.map(|options| options.format), Some(2));
}

#[test]
fn lines_of_input_are_one_stream_and_a_bad_one_is_named() {
    let daemon = Daemon::start();
    let folder = tempfile::tempdir().expect("folder");
    let file = folder.path().join("lines");
    let path = file.to_str().expect("text");
    fs::write(&file, "# draw\npress rshift\nmove 5 6\n\nrelease rshift\ntype hello world\\n\n")
        .expect("written");
    let shown = daemon.run(&["vm", "input", "browser-1", path, "--frame-size", "640x400"]);
    assert!(shown.starts_with("code: 0") && shown.contains("4 lines, 4 events done"), "{shown}");
    let seen = daemon.fake.seen().streamed;
    assert_eq!(seen.iter().filter(|message| message.frame_size.is_some()).count(), 4);
    fs::write(&file, "click 1 2\nclack 3 4\n").expect("written");
    let shown = daemon.run(&["vm", "input", "browser-1", path]);
    assert!(shown.starts_with("code: 2") && shown.contains("line 2: "), "{shown}");
    fs::write(&file, "click 5000 2\n").expect("written");
    let shown = daemon.run(&["vm", "input", "browser-1", path]);
    assert!(shown.contains("messages[1].events[0].click.at"), "{shown}");
}

#[test]
fn waits_for_conditions_say_which_was_met() {
    let daemon = Daemon::start();
    let wait = |more: &[&str]| daemon.run(&[&["vm", "wait", "browser-1"], more].concat());
    let shown = wait(&["--pixel", "1,2=000000", "--pixel", "3,4=#FFFFFF~10", "--frame-size", "640x400"]);
    assert!(shown.starts_with("code: 0") && shown.contains("pixel 2 had its colour"), "{shown}");
    let shown = wait(&["--region", "0,0,10,10", "--timeout", "100ms"]);
    assert!(shown.starts_with("code: 7") && shown.contains("did not come"), "{shown}");
    let shown = wait(&["--pixel", "1,2=white"]);
    assert!(shown.starts_with("code: 2") && shown.contains("X,Y=RRGGBB"), "{shown}");
}

#[test]
fn input_is_what_was_asked_for() {
    let daemon = Daemon::start();
    for arguments in [
        &["vm", "type", "browser-1", "hello", "wörld", "--enter"][..],
        &["vm", "key", "browser-1", "ctrl+shift+t", "Return"],
        &[
            "vm",
            "click",
            "browser-1",
            "1",
            "2",
            "--button",
            "right",
            "--count",
            "2",
            "--modifiers",
            "ctrl,alt",
        ],
        &["vm", "drag", "browser-1", "1,2", "3,4", "--duration", "500ms"],
        &["vm", "scroll", "browser-1", "--dy", "-3", "--at", "5,6"],
    ] {
        let shown = daemon.run(arguments);
        assert!(shown.starts_with("code: 0"), "{arguments:?}: {shown}");
    }
    let batches = daemon.fake.seen().batches;
    let events: Vec<Vec<Event>> = batches
        .into_iter()
        .map(|batch| batch.events.into_iter().filter_map(|event| event.event).collect())
        .collect();
    assert!(
        matches!(&events[0][..], [Event::Text(text), Event::Chord(_) | Event::Key(_)] if text.text == "hello wörld")
    );
    assert!(matches!(&events[1][..], [Event::Chord(first), Event::Chord(_)] if first.keys == "ctrl+shift+t"));
    assert!(
        matches!(&events[2][..], [Event::Click(click)] if click.count == 2 && click.button == 3 && click.modifiers == ["ctrl", "alt"])
    );
    assert!(matches!(&events[3][..], [Event::Drag(drag)] if drag.path.len() == 2 && drag.duration.is_some()));
    assert!(
        matches!(&events[4][..], [Event::Scroll(scroll)] if scroll.delta_y == -3 && scroll.at.is_some_and(|at| at.x == 5))
    );
}

#[test]
fn programs_end_with_their_own_code() {
    let daemon = Daemon::start();
    let code = |arguments: &[&str]| {
        let all = [&["vm", "exec", "browser-1"][..], arguments].concat();
        let output = daemon.command(&all).output().expect("runs");
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned(), output.stderr)
    };
    assert_eq!(code(&["--", "say", "out", "err", "7"]), (Some(7), "out".to_owned(), b"err".to_vec()));
    assert_eq!(code(&["--", "say", "", "", "0"]).0, Some(0));
    assert_eq!(code(&["--", "kill", "9"]).0, Some(137));
    assert_eq!(code(&["--timeout", "1s", "--", "sleep"]).0, Some(124));
    assert_eq!(code(&["--", "nope"]).0, Some(127));
    assert_eq!(
        daemon.command(&["vm", "exec", "browser-2", "--", "say"]).output().expect("runs").status.code(),
        Some(125)
    );
    let mut child = daemon
        .command(&["vm", "exec", "browser-1", "--stdin", "--", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("runs");
    std::io::Write::write_all(&mut child.stdin.take().expect("piped"), b"through").expect("written");
    assert_eq!(child.wait_with_output().expect("ends").stdout, b"through");
}

#[test]
fn files_are_copied_both_ways() {
    let daemon = Daemon::start();
    let dir = tempfile::tempdir().expect("temporary directory");
    let here = dir.path().join("notes.txt");
    fs::write(&here, "kept").expect("write");
    let here = here.to_str().expect("text");
    snapshot!("cp_in", daemon.run(&["vm", "cp", here, "browser-1:/tmp/"]));
    assert_eq!(daemon.fake.seen().files["/tmp/notes.txt"], b"kept");
    let back = daemon.command(&["vm", "cp", "leases/l-1:/tmp/notes.txt", "-"]).output().expect("runs");
    assert_eq!(back.stdout, b"kept");
    snapshot!("err_no_file", daemon.run(&["vm", "cp", "browser-1:/none", here]));
}

#[test]
fn a_pool_update_names_what_it_changes() {
    let daemon = Daemon::start();
    daemon.run(&["pool", "update", "browser", "--count", "7", "--ttl", "5m"]);
    let update = daemon.fake.seen().update.expect("sent");
    let pool = update.pool.expect("given");
    let mut paths = update.update_mask.expect("given").paths;
    paths.sort();
    assert_eq!((pool.name.as_str(), pool.desired_count, pool.warm_count), ("pools/browser", 7, None));
    assert_eq!(paths, ["default_lease_ttl", "desired_count"]);
}

#[cfg(unix)]
#[test]
fn a_command_runs_with_a_desktop_of_its_own() {
    let daemon = Daemon::start();
    let script = "echo $HVKUBE_LEASE $HVKUBE_VM; exit 9";
    let output = daemon
        .command(&["lease", "run", "browser", "--destroy", "--", "sh", "-c", script])
        .output()
        .expect("runs");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "leases/l-1 vms/browser-1\n");
    assert_eq!(output.status.code(), Some(9));
    assert_eq!(daemon.fake.seen().released, [("leases/l-1".to_owned(), ReleasePolicy::Destroy)]);
    let missing =
        daemon.command(&["lease", "run", "browser", "--", "/no/such/program"]).output().expect("runs");
    assert_eq!(missing.status.code(), Some(127));
    assert_eq!(daemon.fake.seen().released.len(), 2, "given back although nothing ran");
}

#[cfg(unix)]
#[test]
fn interrupted_commands_leave_nothing_behind() {
    let daemon = Daemon::start();
    let code = daemon.interrupt(&["lease", "acquire", "busy"], "an acquire", |seen| seen.acquires == 1);
    assert_eq!(code, Some(130));
    daemon.wait_for("its end", |seen| seen.abandoned == 1);
    // The command shows that it runs by what it does to the desktop.
    let script = "\"$0\" vm key $HVKUBE_LEASE a; sleep 60";
    let arguments = ["lease", "run", "browser", "--", "sh", "-c", script, env!("CARGO_BIN_EXE_hvkube")];
    let code = daemon.interrupt(&arguments, "a key", |seen| seen.batches.len() == 1);
    assert_eq!(code, Some(130));
    daemon.wait_for("a release", |seen| seen.released.len() == 1);
}

#[test]
fn completions_and_version_need_no_daemon() {
    let nowhere = Daemon::nowhere();
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let shown = nowhere.run(&["completions", shell]);
        assert!(shown.starts_with("code: 0") && shown.contains("hvkube"), "{shell}");
    }
    snapshot!("version", nowhere.run(&["version", "--client"]));
}

#[test]
fn the_local_daemon_is_found_by_itself() {
    let daemon = Daemon::start();
    let dir = tempfile::tempdir().expect("temporary directory");
    fs::write(dir.path().join("endpoint"), format!("{}\n", daemon.endpoint)).expect("write");
    fs::write(dir.path().join("admin.token"), format!("{TOKEN}\n")).expect("write");
    let mut command = Daemon::bare(&["vm", "list", "-o", "name"]);
    let output = command.env("HVKUBE_STATE_DIR", dir.path()).output().expect("runs");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "vms/browser-1\nvms/browser-2\nvms/browser-3\n");
}

#[test]
fn agents() {
    let daemon = Daemon::start();
    snapshot!("agent_list", daemon.run(&["agent", "list"]));
    snapshot!("agent_list_wide", daemon.run(&["agent", "list", "-o", "wide", "--status", "running,pending"]));
    snapshot!("agent_get", daemon.run(&["agent", "get", "a-1"]));
    snapshot!("agent_logs", daemon.run(&["agent", "logs", "a-1", "--follow"]));
    snapshot!("agent_cancel", daemon.run(&["agent", "cancel", "a-2"]));
    snapshot!("err_agent_ended", daemon.run(&["agent", "cancel", "a-1"]));
    snapshot!("err_agent_not_found", daemon.run(&["agent", "get", "nope"]));
    snapshot!("help_agent_submit", daemon.run(&["agent", "submit", "--help"]));
    let picture = daemon.command(&["agent", "screenshot", "a-1", "-o", "-"]).output().expect("runs");
    assert_eq!(picture.stdout, PICTURE);
}

#[test]
fn an_agent_is_submitted_as_the_plan_says() {
    let daemon = Daemon::start();
    let line = ["agent", "submit", "--pool", "browser-pool", "--workflow", "book-flight", "--input"];
    let with = |input: &str, more: &[&str]| {
        let arguments: Vec<&str> = line.iter().copied().chain([input]).chain(more.iter().copied()).collect();
        daemon.run(&arguments)
    };
    snapshot!("agent_submit", with(r#"{"dest":"NYC"}"#, &[]));
    let sent = daemon.fake.seen().submitted.expect("sent").agent.expect("given");
    assert_eq!(sent.pool, "pools/browser-pool");
    assert_eq!(sent.task.expect("given").input_json, r#"{"dest":"NYC"}"#);
    snapshot!("agent_submit_wait", with(r#"{"dest":"NYC"}"#, &["--wait"]));
    snapshot!("agent_submit_no_json", with("{dest", &[]));

    let daemon = Daemon::start();
    let output = daemon
        .command(&["agent", "submit", "-p", "browser", "-w", "broken", "--wait", "-o", "name"])
        .output()
        .expect("runs");
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "agents/a-3\n");
}
