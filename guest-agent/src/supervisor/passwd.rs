//! The desktop user, from `/etc/passwd` and `/etc/group` as they are: golden images have local users, and a static reader
//! needs no name service in the agent.

use std::fs;
use std::io;
use std::path::PathBuf;

/// A user, with all groups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// Login name.
    pub name: String,
    /// User id.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// All groups, the primary included.
    pub groups: Vec<u32>,
    /// Home directory.
    pub home: PathBuf,
    /// Login shell.
    pub shell: String,
}

impl User {
    /// Looks `name` up.
    ///
    /// # Errors
    /// When the files can't be read or there is no such user.
    pub fn by_name(name: &str) -> io::Result<Self> {
        let passwd = fs::read_to_string("/etc/passwd")?;
        let group = fs::read_to_string("/etc/group")?;
        parse(&passwd, &group, name).ok_or_else(|| {
            io::Error::new(io::ErrorKind::NotFound, format!("no user {name:?} in /etc/passwd"))
        })
    }

    /// The environment of this user's session, as a login on `display` would have it; what comes up only later in a login
    /// is added when a program is started.
    #[must_use]
    pub fn session_env(&self, display: &str) -> Vec<(String, String)> {
        let mut env = vec![
            ("HOME".into(), self.home.display().to_string()),
            ("USER".into(), self.name.clone()),
            ("LOGNAME".into(), self.name.clone()),
            ("SHELL".into(), self.shell.clone()),
            ("PATH".into(), "/usr/local/bin:/usr/bin:/bin:/usr/local/games:/usr/games".into()),
            ("DISPLAY".into(), display.into()),
            ("LANG".into(), locale(&fs::read_to_string("/etc/default/locale").unwrap_or_default())),
        ];
        let authority = self.home.join(".Xauthority");
        if authority.exists() {
            env.push(("XAUTHORITY".into(), authority.display().to_string()));
        }
        env
    }
}

fn locale(text: &str) -> String {
    let set = text.lines().find_map(|l| l.trim().strip_prefix("LANG="));
    set.map(|v| v.trim_matches('"')).filter(|v| !v.is_empty()).unwrap_or("C.UTF-8").to_owned()
}

fn parse(passwd: &str, group: &str, name: &str) -> Option<User> {
    let fields: Vec<&str> =
        passwd.lines().map(|l| l.split(':').collect()).find(|f: &Vec<&str>| f[0] == name)?;
    let (uid, gid) = (fields.get(2)?.parse().ok()?, fields.get(3)?.parse().ok()?);
    let mut groups = vec![gid];
    for line in group.lines() {
        let fields: Vec<&str> = line.split(':').collect();
        if let (Some(id), Some(members)) = (fields.get(2).and_then(|id| id.parse().ok()), fields.get(3))
            && members.split(',').any(|m| m == name)
            && !groups.contains(&id)
        {
            groups.push(id);
        }
    }
    Some(User {
        name: name.to_owned(),
        uid,
        gid,
        groups,
        home: PathBuf::from(fields.get(5)?),
        shell: fields.get(6).filter(|s| !s.is_empty()).unwrap_or(&"/bin/sh").to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_a_user_and_all_groups() {
        let passwd = "root:x:0:0:root:/root:/bin/bash\nuser:x:1000:1000:,,,:/home/user:\n";
        let group = "root:x:0:\naudio:x:29:pulse,user\nusers:x:100:user2\nuser:x:1000:user\n";
        let user = parse(passwd, group, "user").expect("there");
        assert_eq!((user.uid, user.gid, user.shell.as_str()), (1000, 1000, "/bin/sh"));
        assert_eq!(user.groups, [1000, 29]);
        assert_eq!(parse(passwd, group, "use"), None);
        assert_eq!(parse("broken\nuser:x:notanumber:1", "", "user"), None);
    }

    #[test]
    fn locale_defaults_to_utf8() {
        assert_eq!(locale("# none\n"), "C.UTF-8");
        assert_eq!(locale("LANG=\"de_DE.UTF-8\"\n"), "de_DE.UTF-8");
    }
}
