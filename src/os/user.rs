//! Users and groups, as `/etc/passwd` and `/etc/group` have them. Those that only a directory in the network knows are
//! not found: the daemon is without network, and asks no other service who somebody is.

use std::io;

/// The number of a group.
#[must_use]
pub fn group_id(name: &str) -> Option<u32> {
    id(&std::fs::read_to_string("/etc/group").ok()?, name)
}

/// Whether `uid` is root, or a member of one of `groups`, as its first group or by being listed. A group that is not there
/// has no members. The files are read each time, so who was added is in.
///
/// # Errors
/// When they cannot be read.
pub fn is_admin(uid: u32, groups: &[String]) -> io::Result<bool> {
    if uid == 0 || groups.is_empty() {
        return Ok(uid == 0);
    }
    let read = std::fs::read_to_string;
    Ok(is_member(&read("/etc/passwd")?, &read("/etc/group")?, uid, groups))
}

/// The fields of each line of such a file.
fn lines(file: &str) -> impl Iterator<Item = Vec<&str>> {
    file.lines().map(|line| line.split(':').collect())
}

fn id(file: &str, name: &str) -> Option<u32> {
    lines(file).find_map(|line| match line.as_slice() {
        [own, _, gid, ..] if *own == name => gid.parse().ok(),
        _ => None,
    })
}

fn is_member(passwd: &str, group: &str, uid: u32, groups: &[String]) -> bool {
    // A number may have several names, each with groups of its own.
    let mut users = Vec::new();
    for line in lines(passwd) {
        if let [name, _, number, gid, ..] = line.as_slice()
            && number.parse() == Ok(uid)
        {
            users.push((*name, gid.parse::<u32>().ok()));
        }
    }
    lines(group).any(|line| match line.as_slice() {
        [name, _, gid, members] if groups.iter().any(|wanted| wanted == name) => {
            let gid = gid.parse().ok();
            users.iter().any(|(user, first)| {
                (gid.is_some() && gid == *first) || members.split(',').any(|member| member == *user)
            })
        }
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0::/root:/bin/sh\nann:x:1000:1000::/:\nbob:x:1001:10::/:\nbroken\n\
                          ann2:x:1000:100::/:\ncy:x:1002:oops::/:\n";
    const GROUP: &str =
        "root:x:0:\nwheel:x:10:ann,dee\nadm:x:11:ann2\nbroken:x\nempty:x:oops:\nsudo:x:27:cy\n";

    #[test]
    fn members_are_those_listed_and_those_whose_first_group_it_is() {
        for (uid, groups, wanted) in [
            (1000, &["wheel"][..], true),
            (1000, &["adm"], true),
            (1001, &["wheel"], true),
            (1001, &["adm"], false),
            (1001, &["none", "wheel"], true),
            (1002, &["wheel", "empty"], false),
            (1002, &["sudo"], true),
            (1003, &["wheel", "adm", "sudo"], false),
            (1000, &[], false),
        ] {
            let groups: Vec<String> = groups.iter().map(|name| (*name).into()).collect();
            assert_eq!(is_member(PASSWD, GROUP, uid, &groups), wanted, "{uid} {groups:?}");
        }
        assert_eq!((id(GROUP, "wheel"), id(GROUP, "empty"), id(GROUP, "broken")), (Some(10), None, None));
    }

    #[test]
    fn root_may_all_and_nobody_else_without_a_group() {
        let none = u32::MAX - 1;
        assert!(is_admin(0, &[]).unwrap() && !is_admin(none, &[]).unwrap());
        assert!(!is_admin(none, &["root".into()]).unwrap());
        assert_eq!(group_id("root"), Some(0));
    }
}
