//! The interface file as data: what callers may ask for, with names, types and access, and the introspection data that is
//! served. What stands there under "since: later" is left out.

/// The interfaces of sotto.
const OURS: &str = include_str!("../../../proto/org.sotto.Sotto1.xml");

/// Those that every object has (D-Bus specification, "Standard Interfaces").
const STANDARD: &str = r#"
<interface name="org.freedesktop.DBus.Peer">
  <method name="Ping"/>
  <method name="GetMachineId"><arg name="machine_uuid" type="s" direction="out"/></method>
</interface>
<interface name="org.freedesktop.DBus.Introspectable">
  <method name="Introspect"><arg name="xml_data" type="s" direction="out"/></method>
</interface>
<interface name="org.freedesktop.DBus.Properties">
  <method name="Get">
    <arg name="interface_name" type="s" direction="in"/>
    <arg name="property_name" type="s" direction="in"/>
    <arg name="value" type="v" direction="out"/>
  </method>
  <method name="Set">
    <arg name="interface_name" type="s" direction="in"/>
    <arg name="property_name" type="s" direction="in"/>
    <arg name="value" type="v" direction="in"/>
  </method>
  <method name="GetAll">
    <arg name="interface_name" type="s" direction="in"/>
    <arg name="properties" type="a{sv}" direction="out"/>
  </method>
  <signal name="PropertiesChanged">
    <arg name="interface_name" type="s"/>
    <arg name="changed_properties" type="a{sv}"/>
    <arg name="invalidated_properties" type="as"/>
  </signal>
</interface>
"#;

pub(super) const PEER: &str = "org.freedesktop.DBus.Peer";
pub(super) const INTROSPECTABLE: &str = "org.freedesktop.DBus.Introspectable";
pub(super) const PROPERTIES: &str = "org.freedesktop.DBus.Properties";
pub(super) const OBJECT_MANAGER: &str = "org.freedesktop.DBus.ObjectManager";
pub(super) const LOG_CONTROL: &str = "org.freedesktop.LogControl1";
pub(super) const MANAGER: &str = "org.sotto.Sotto1.Manager";
pub(super) const GENERATION: &str = "org.sotto.Sotto1.Generation";
pub(super) const SESSION: &str = "org.sotto.Sotto1.Session";
pub(super) const MODEL: &str = "org.sotto.Sotto1.Model";
pub(super) const JOB: &str = "org.sotto.Sotto1.Job";

/// Those of [`STANDARD`].
pub(super) const EVERYWHERE: [&str; 3] = [PEER, INTROSPECTABLE, PROPERTIES];

#[derive(Debug)]
pub(super) struct Method {
    pub(super) name: &'static str,
    /// Signature of its arguments.
    pub(super) takes: String,
}

#[derive(Debug)]
pub(super) struct Property {
    pub(super) name: &'static str,
    pub(super) writable: bool,
    /// It never changes.
    pub(super) constant: bool,
}

#[derive(Debug)]
pub(super) struct Interface {
    pub(super) name: &'static str,
    pub(super) methods: Vec<Method>,
    pub(super) properties: Vec<Property>,
    /// Its introspection data.
    xml: String,
}

/// All interfaces.
#[derive(Debug)]
pub(super) struct Interfaces(Vec<Interface>);

impl Interfaces {
    pub(super) fn new() -> Self {
        let mut all = Vec::new();
        read(STANDARD, &mut all);
        read(OURS, &mut all);
        Self(all)
    }

    pub(super) fn get(&self, name: &str) -> Option<&Interface> {
        self.0.iter().find(|interface| interface.name == name)
    }

    /// Introspection data of an object with the interfaces `names`, and with `children` below it.
    pub(super) fn xml(&self, names: &[&str], children: &[String]) -> String {
        let mut xml = "<!DOCTYPE node PUBLIC \"-//freedesktop//DTD D-BUS Object Introspection 1.0//EN\"\n \
                       \"http://www.freedesktop.org/standards/dbus/1.0/introspect.dtd\">\n<node>\n"
            .to_owned();
        for interface in names.iter().chain(&EVERYWHERE).filter_map(|name| self.get(name)) {
            xml += &interface.xml;
        }
        for child in children {
            xml += &format!("<node name=\"{child}\"/>\n");
        }
        xml + "</node>\n"
    }
}

/// The value of `name` in a tag.
fn attribute(tag: &'static str, name: &str) -> Option<&'static str> {
    let (_, rest) = tag.split_once(&format!(" {name}=\""))?;
    rest.split('"').next()
}

/// Reads our own file, which a test holds to what the daemon serves.
fn read(text: &'static str, all: &mut Vec<Interface>) {
    let (mut rest, mut later) = (text, false);
    // Elements still open of one that is left out.
    let mut skipping = 0_usize;
    while let Some((_, after)) = rest.split_once('<') {
        if let Some(comment) = after.strip_prefix("!--") {
            let (words, after) = comment.split_once("-->").unwrap_or((comment, ""));
            later |= words.trim_start().starts_with("since: later");
            rest = after;
            continue;
        }
        let (tag, after) = after.split_once('>').unwrap_or((after, ""));
        rest = after;
        let (opens, closes) = (!tag.starts_with('/') && !tag.ends_with('/'), tag.starts_with('/'));
        if skipping > 0 {
            skipping = if closes { skipping - 1 } else { skipping + usize::from(opens) };
        } else if std::mem::take(&mut later) {
            skipping = usize::from(opens);
        } else if !tag.starts_with(['?', '!']) {
            take(tag, all);
        }
    }
}

/// Takes a tag that is not left out.
fn take(tag: &'static str, all: &mut Vec<Interface>) {
    let kind = tag.split([' ', '/']).next().unwrap_or_default();
    let name = attribute(tag, "name").unwrap_or_default();
    if kind == "interface" {
        all.push(Interface { name, methods: Vec::new(), properties: Vec::new(), xml: String::new() });
    }
    let Some(last) = all.last_mut() else { return };
    match kind {
        "node" => return,
        "method" => last.methods.push(Method { name, takes: String::new() }),
        "property" => {
            let writable = attribute(tag, "access") == Some("readwrite");
            last.properties.push(Property { name, writable, constant: false });
        }
        "arg" if attribute(tag, "direction") == Some("in") => {
            if let Some(method) = last.methods.last_mut() {
                method.takes += attribute(tag, "type").unwrap_or_default();
            }
        }
        "annotation" if attribute(tag, "value") == Some("const") => {
            if let Some(property) = last.properties.last_mut() {
                property.constant = true;
            }
        }
        _ => {}
    }
    if tag != "/node" {
        last.xml += &format!("<{tag}>\n");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_read_as_it_stands() {
        let all = Interfaces::new();
        let manager = all.get(MANAGER).expect("the manager");
        let takes = |name: &str| manager.methods.iter().find(|m| m.name == name).map(|m| m.takes.as_str());
        assert_eq!((takes("Generate"), takes("Cancel"), takes("Nothing")), (Some("sa{sv}"), Some("o"), None));
        let version = manager.properties.iter().find(|p| p.name == "Version").expect("a version");
        assert!(version.constant && !version.writable);
        let level = all.get(LOG_CONTROL).expect("log control").properties.first().expect("a level");
        assert!(level.writable && !level.constant);
        for name in [PEER, INTROSPECTABLE, PROPERTIES, OBJECT_MANAGER, GENERATION, SESSION, MODEL, JOB] {
            assert!(all.get(name).is_some_and(|i| i.xml.ends_with("</interface>\n")), "{name}");
        }
    }

    #[test]
    fn what_comes_later_is_left_out() {
        let mut all = Vec::new();
        let text = "<node><interface name=\"a\"><!-- since: later --><method name=\"b\"><arg type=\"s\"/></method>\
                    <!-- since: later --><property name=\"c\" access=\"read\"/><method name=\"d\"/></interface>\
                    <!-- since: later --><interface name=\"e\"><method name=\"f\"/></interface></node>";
        read(text, &mut all);
        assert_eq!(all.len(), 1);
        assert_eq!(all[0].methods.iter().map(|m| m.name).collect::<Vec<_>>(), ["d"]);
        assert!(all[0].properties.is_empty());
        assert_eq!(all[0].xml, "<interface name=\"a\">\n<method name=\"d\"/>\n</interface>\n");
    }
}
